//! Where a cluster keeps its state: one spelling of the directory for every command, and nobody but its owner in it.
//!
//! Names in the kernel (bridges, cgroups, run directories) follow from the directory's path, so a path is made absolute
//! and free of links and `..` once, where the command line is read.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

/// Where everything lives unless told otherwise.
pub(crate) const DATA_DIR: &str = "/var/lib/gantry";
/// What the kernel's mount options leave for the part of a path that is the user's choice.
const LONGEST: usize = 512;
/// By one of these a directory is recognised that a cluster has lived in, or was prepared for one.
const MARKS: [&str; 8] = [
    "gantry.pid",
    "gantry.log",
    "member.json",
    "hosts.json",
    "node.kubeconfig",
    "keys",
    "store",
    "pki/ca.crt",
];
/// What a file system, or the one who gave it to us, may have left in an otherwise empty directory.
const NOBODYS: [&str; 1] = ["lost+found"];

/// Where a node keeps its state.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// Directory for all state: desired state, keys, images, logs
    #[arg(long, default_value = DATA_DIR, env = "GANTRY_DATA_DIR", value_parser = data_dir())]
    pub(super) data_dir: PathBuf,
}

/// How the agent of a cluster's data directory is set up.
pub(crate) fn agent_config(data_dir: &Path) -> gantry_agent::AgentConfig {
    gantry_agent::AgentConfig::in_directory(&data_dir.join("agent"))
}

/// Reads a data directory from the command line.
pub(crate) fn data_dir() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new()
        .try_map(|text| canonical(Path::new(&text)).map_err(|error| format!("{error:#}")))
}

/// The one name of a directory that may not be there yet.
fn canonical(path: &Path) -> Result<PathBuf> {
    ensure!(
        !path.as_os_str().is_empty(),
        "it is empty: name a directory, or leave it out for {DATA_DIR}"
    );
    let absolute = match path.is_absolute() {
        true => path.to_owned(),
        false => std::env::current_dir()
            .context("finding the directory that a relative path begins at")?
            .join(path),
    };
    let mut missing = Vec::new();
    let mut there = absolute.as_path();
    let found = loop {
        match fs::canonicalize(there) {
            Ok(found) => break found,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("looking for {}", there.display()));
            }
        }
        ensure!(
            there.symlink_metadata().is_err(),
            "{} is a link to nothing: make the directory that it names, or name another",
            there.display()
        );
        match there.components().next_back() {
            Some(Component::Normal(name)) => missing.push(name.to_owned()),
            _ => bail!(
                "{} goes up from a directory that is not there: name it without '..'",
                path.display()
            ),
        }
        there = there.parent().unwrap_or(Path::new("/"));
    };
    let path = missing
        .iter()
        .rev()
        .fold(found, |path, name| path.join(name));
    check_spelling(&path)?;
    Ok(path)
}

/// Every letter is allowed that is one: what means something to mount options, shells or lists is told apart where it would.
fn check_spelling(path: &Path) -> Result<()> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    let text = text.with_context(|| {
        format!(
            "{} is not plain text: name a directory without control characters",
            path.display()
        )
    })?;
    ensure!(
        path.as_os_str().as_bytes().len() <= LONGEST,
        "{text} is longer than {LONGEST} bytes, which leaves no room in mount options: name a shorter one"
    );
    ensure!(
        path != Path::new("/"),
        "/ is the whole machine: name a directory below it"
    );
    Ok(())
}

/// Creates a data directory, or takes one over that is empty or a cluster's. Whatever it was before, only its owner gets
/// into it: setuid files of images, keys and what pods write are in there.
pub(crate) fn prepare(data_dir: &Path) -> Result<()> {
    let named = || {
        format!(
            "preparing the data directory {}; name another with --data-dir",
            data_dir.display()
        )
    };
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir);
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!(
                "{} is a file: name a directory with --data-dir",
                data_dir.display()
            )
        }
        made => made.with_context(named)?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(data_dir, flags, Mode::empty()).with_context(named)?;
    let directory = fs::File::from(directory);
    let metadata = directory.metadata().with_context(named)?;
    let own = rustix::process::geteuid().as_raw();
    ensure!(
        metadata.uid() == own,
        "the data directory {} belongs to user {} and not to {own}, under which gantry runs: its owner could replace everything \
         in it; 'chown -R {own}' it, or name another with --data-dir",
        data_dir.display(),
        metadata.uid()
    );
    let mode = metadata.permissions().mode() & 0o7777;
    if mode == 0o700 {
        return Ok(());
    }
    ensure!(
        is_ours(data_dir).with_context(named)?,
        "{} is open to others (mode {mode:o}) and holds what is not gantry's: name an empty or a new directory with --data-dir",
        data_dir.display()
    );
    directory
        .set_permissions(fs::Permissions::from_mode(0o700))
        .with_context(named)
}

/// A path as it is typed into a shell.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:,=@%".contains(letter);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Whether a name in a data directory marks it as one.
pub(super) fn is_mark(name: &OsStr) -> bool {
    MARKS.iter().any(|mark| name == *mark)
}

/// Whether a directory is empty, or has been a cluster's.
pub(super) fn is_ours(directory: &Path) -> std::io::Result<bool> {
    if MARKS.iter().any(|mark| directory.join(mark).exists()) {
        return Ok(true);
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if !NOBODYS.iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whatever this process and its children create from now on is its owner's alone, unless they say otherwise.
pub(crate) fn keep_to_ourselves() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// What a file system forbids that pods may miss; `None` where that is nothing.
pub(crate) fn forbidden(data_dir: &Path) -> Option<String> {
    let flags = rustix::fs::statvfs(data_dir).ok()?.f_flag;
    let forbidden: Vec<&str> = [
        (StatVfsMountFlags::NOEXEC, "noexec"),
        (StatVfsMountFlags::NODEV, "nodev"),
        (StatVfsMountFlags::NOSUID, "nosuid"),
    ]
    .into_iter()
    .filter_map(|(flag, word)| flags.contains(flag).then_some(word))
    .collect();
    (!forbidden.is_empty()).then(|| forbidden.join(","))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_has_one_name_however_it_is_written() -> Result<()> {
        let base = tempfile::tempdir()?;
        let base = base.path().canonicalize()?;
        fs::create_dir(base.join("real"))?;
        symlink("real", base.join("link"))?;
        for written in [
            "real/data",
            "link/data",
            "real/data/",
            "real/../link/./data",
        ] {
            assert_eq!(canonical(&base.join(written))?, base.join("real/data"));
        }
        let here = std::env::current_dir()?.canonicalize()?;
        assert_eq!(canonical(Path::new("some/where"))?, here.join("some/where"));
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() -> Result<()> {
        let base = tempfile::tempdir()?;
        let base = base.path();
        symlink("nowhere", base.join("dangling"))?;
        fs::write(base.join("file"), "")?;
        let long = "x".repeat(200);
        let table = [
            (PathBuf::new(), "is empty"),
            (PathBuf::from("/"), "whole machine"),
            (base.join("missing/../data"), "without '..'"),
            (base.join("dangling"), "link to nothing"),
            (base.join("dangling/data"), "link to nothing"),
            (base.join("file/data"), "file/data"),
            (base.join("a\nb"), "plain text"),
            (base.join(&long).join(&long).join(&long), "longer than"),
        ];
        for (path, words) in table {
            let error = canonical(&path).expect_err(words);
            assert!(format!("{error:#}").contains(words), "{path:?}: {error:#}");
        }
        Ok(())
    }

    #[test]
    fn a_name_may_have_any_letters_and_shells_read_it_as_it_is() -> Result<()> {
        let base = tempfile::tempdir()?;
        let base = base.path().canonicalize()?;
        for name in [
            "a:b", "a,b", "a b", "a\\b", "a\"b", "it's", "$HOME", "\u{e4}",
        ] {
            let path = base.join(name);
            assert_eq!(canonical(&path)?, path);
            let echo = format!("printf %s {}", quoted(&path));
            let said = std::process::Command::new("sh")
                .args(["-c", &echo])
                .output()?;
            assert_eq!(said.stdout, path.as_os_str().as_bytes(), "{echo}");
        }
        assert_eq!(quoted(Path::new("/var/lib/gantry")), "/var/lib/gantry");
        Ok(())
    }

    #[test]
    fn nobody_else_gets_into_a_data_directory() -> Result<()> {
        let base = tempfile::tempdir()?;
        let mode = |path: &Path| path.metadata().map(|it| it.permissions().mode() & 0o7777);
        let new = base.path().join("a/b");
        prepare(&new)?;
        assert_eq!((mode(&new)?, mode(&base.path().join("a"))?), (0o700, 0o700));

        let before = base.path().join("before");
        fs::create_dir(&before)?;
        fs::set_permissions(&before, fs::Permissions::from_mode(0o755))?;
        fs::write(before.join("notes"), "")?;
        let refused = prepare(&before).expect_err("it is somebody's");
        assert!(refused.to_string().contains("not gantry's"), "{refused}");
        assert_eq!(mode(&before)?, 0o755, "what is not ours stays as it is");
        fs::write(before.join("gantry.pid"), "")?;
        prepare(&before)?;
        assert_eq!(mode(&before)?, 0o700);

        let file = base.path().join("file");
        fs::write(&file, "")?;
        let refused = prepare(&file).expect_err("it is a file");
        assert!(refused.to_string().contains("is a file"), "{refused}");
        Ok(())
    }

    /// Needs root, to give a directory away.
    #[test]
    fn a_directory_of_somebody_else_is_refused() -> Result<()> {
        let base = tempfile::tempdir()?;
        std::os::unix::fs::chown(base.path(), Some(12345), None).context("this needs root")?;
        let refused = prepare(base.path()).expect_err("it is another's");
        assert!(
            refused.to_string().contains("belongs to user 12345"),
            "{refused}"
        );
        Ok(())
    }
}
