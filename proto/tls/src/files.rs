//! Certificates and keys in files: read whole, written whole or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::TlsError;

/// A file's text; `None` when there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::File {
            doing: "reading",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces a file as a whole, readable by whom `mode` says from the first byte on.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let attempt = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            gantry_durable::create_directories(directory)?;
        }
        gantry_durable::replace(path, text.as_bytes(), mode)
    };
    attempt().map_err(|source| TlsError::File {
        doing: "writing",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("below/it.key");
        assert_eq!(read(&path).expect("no error"), None);
        for text in ["one", "another"] {
            write(&path, text, 0o600).expect("it is written");
            assert_eq!(read(&path).expect("no error").as_deref(), Some(text));
        }
        let mode = path.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
