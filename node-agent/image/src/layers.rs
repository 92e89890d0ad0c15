//! From a compressed blob to a directory: verified, unpacked beside its place, completed with what the layers below it have,
//! put on the disk, then renamed into its place.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gantry_cri::image::ImageError;
use sha2::{Digest, Sha256};

use crate::allowance::{Errand, Meter, Watched};
use crate::manifest::hex;
use crate::parents::Parents;
use crate::unpack::{Unpacked, unpack};

/// How a blob is compressed, by its first bytes: media types lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The most that zstd remembers of what it has written, as a power of two. Levels up to 19 want 8 MiB, 21 wants 64; only 22 and
/// `--long` go beyond.
const ZSTD_WINDOW: u32 = 26;

/// A reader of the plain bytes of a gzip, zstd or uncompressed file.
pub(crate) fn decompressed(file: File, meter: &Meter) -> io::Result<Box<dyn Read + '_>> {
    let watched = Watched { inner: file, meter };
    let mut file = BufReader::with_capacity(256 * 1024, watched);
    let start = io::BufRead::fill_buf(&mut file)?;
    let compression = match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // The second is what may be skipped: some begin with what is about the blob.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    })
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// A directory for what is unpacked, removed when it is dropped: whoever made the image has arranged what is in it.
pub(crate) struct Staging(PathBuf);

impl Staging {
    pub(crate) fn new(temporary: &Path, prefix: &str) -> io::Result<Self> {
        let made = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(temporary)?;
        Ok(Self(made.keep()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = gantry_durable::remove_tree(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "removing what was unpacked");
        }
    }
}

/// A layer that is unpacked, but not complete and not in its place yet. What is dropped before that is removed.
pub(crate) struct Staged {
    directory: Staging,
    unpacked: Unpacked,
}

/// What a layer is called in messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Called<'a> {
    /// The image, as the user wrote it.
    pub(crate) image: &'a str,
    /// The blob.
    pub(crate) digest: &'a str,
}

impl Called<'_> {
    fn failed(&self, error: io::Error) -> ImageError {
        match error.kind() {
            // A full disk, or one that is slow or busy, is the node's trouble, not the image's.
            io::ErrorKind::StorageFull
            | io::ErrorKind::TimedOut
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem => ImageError::Io {
                doing: format!(
                    "unpacking layer {} of image \"{}\"",
                    self.digest, self.image
                ),
                source: error,
            },
            _ => ImageError::Corrupt {
                reference: self.image.to_owned(),
                digest: self.digest.to_owned(),
                cause: error.to_string(),
            },
        }
    }
}

/// Unpacks a blob below `temporary`, unless the errand ends before; `diff_id` is what the plain tar must hash to.
pub(crate) fn stage(
    called: Called<'_>,
    diff_id: &str,
    blob: &Path,
    temporary: &Path,
    errand: &Errand,
) -> Result<Staged, ImageError> {
    let directory = Staging::new(temporary, "layer-").map_err(|error| called.failed(error))?;
    let unpacked = try_unpack(blob, directory.path(), diff_id, errand)
        .map_err(|error| called.failed(error))?;
    Ok(Staged {
        directory,
        unpacked,
    })
}

impl Staged {
    /// Completes the layer with what is below it and gives it its name, which is on the same file system; returns its
    /// unpacked bytes. It is on the disk before it has a name: what the index lists is never read again, and a power cut would
    /// otherwise leave files of it empty for ever.
    pub(crate) fn settle(
        self,
        called: Called<'_>,
        parents: &Parents,
        destination: &Path,
    ) -> Result<u64, ImageError> {
        let staging = self.directory.path();
        parents
            .complete(&self.unpacked, staging)
            .map_err(|error| called.failed(error))?;
        place(staging, destination).map_err(|source| ImageError::Io {
            doing: format!("moving layer {} into place", called.digest),
            source,
        })?;
        Ok(self.unpacked.size)
    }
}

fn place(staging: &Path, destination: &Path) -> io::Result<()> {
    // One call for all files; a wait for each would take seconds for a large layer.
    rustix::fs::syncfs(File::open(staging)?)?;
    // The index has forgotten one of this name, as it does when it could not be written.
    gantry_durable::remove_tree(destination)?;
    gantry_durable::rename(staging, destination)
}

fn try_unpack(blob: &Path, staging: &Path, diff_id: &str, errand: &Errand) -> io::Result<Unpacked> {
    // A layer need not say what its root is like.
    std::fs::set_permissions(staging, std::fs::Permissions::from_mode(0o755))?;
    let blob = File::open(blob)?;
    let meter = Meter::new(errand, blob.metadata()?.len()).on(staging);
    let mut stream = Hashing {
        inner: decompressed(blob, &meter)?,
        hasher: Sha256::new(),
    };
    let unpacked = unpack(&mut stream, staging, &meter)?;
    let found = format!("sha256:{}", hex(&stream.hasher.finalize()));
    if found != diff_id {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its content hashes to {found}, the image config says {diff_id}"),
        ));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Why a blob is not unpacked.
    fn refused(blob: &[u8], errand: &Errand) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("blob");
        std::fs::write(&path, blob).expect("a file");
        let called = Called {
            image: "image",
            digest: "blob",
        };
        let staged = stage(called, "sha256:other", &path, directory.path(), errand);
        let error = staged.map(drop).expect_err("refused");
        let left = std::fs::read_dir(directory.path()).expect("reads").count();
        assert_eq!(left, 1, "the blob alone");
        error.to_string()
    }

    #[test]
    fn a_few_bytes_do_not_stand_for_any_number() {
        let zeros = io::repeat(0).take(32 << 20);
        let blob = zstd::encode_all(zeros, 3).expect("compresses");
        assert!(blob.len() < 16 << 10, "{}", blob.len());
        let error = refused(&blob, &Errand::with_spare(1 << 20));
        assert!(error.contains("it unpacks to more"), "{error}");
        let error = refused(&blob, &Errand::with_spare(32 << 20));
        assert!(error.contains("its content hashes to"), "{error}");
    }

    #[test]
    fn a_blob_may_be_in_pieces() {
        let plain = b"first second".as_slice();
        let (first, second) = plain.split_at(6);
        let gzip = |plain: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(plain).expect("compresses");
            encoder.finish().expect("compresses")
        };
        let zstd = |plain: &[u8]| zstd::encode_all(plain, 3).expect("compresses");
        let skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        for blob in [
            [gzip(first), gzip(second)],
            [zstd(first), zstd(second)],
            [skipped.clone(), zstd(plain)],
            [zstd(plain), skipped],
        ] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&blob.concat()).expect("written");
            io::Seek::rewind(&mut file).expect("from its start");
            let (errand, _ends) = Errand::begin();
            let meter = Meter::new(&errand, 1 << 20);
            let mut found = Vec::new();
            let mut reader = decompressed(file, &meter).expect("a reader");
            reader.read_to_end(&mut found).expect("reads");
            assert_eq!(found, plain);
        }
    }

    #[test]
    fn what_nobody_waits_for_ends() {
        let (errand, ends) = Errand::begin();
        let error = refused(&[0; 1024], &errand);
        assert!(error.contains("its content hashes to"), "{error}");
        drop(ends);
        let error = refused(&[0; 1024], &errand);
        assert!(error.contains("nobody waits"), "{error}");
    }

    #[test]
    fn the_memory_of_zstd_is_bounded() {
        for window in [ZSTD_WINDOW, ZSTD_WINDOW + 1] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
            encoder.window_log(window).expect("a window");
            encoder.write_all(&[0; 1024]).expect("compresses");
            encoder.flush().expect("compresses");
            let blob = encoder.finish().expect("compresses");
            let error = refused(&blob, &Errand::with_spare(1 << 20));
            let is_read = error.contains("its content hashes to");
            assert_eq!(is_read, window == ZSTD_WINDOW, "{window}: {error}");
        }
    }
}
