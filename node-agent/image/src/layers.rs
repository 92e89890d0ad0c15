//! From a compressed blob to a directory: verified, unpacked beside its place, put on the disk, then renamed into it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::ImageError;
use crate::manifest::hex;
use crate::unpack::unpack;

/// How a blob is compressed, by its first bytes: media types lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A reader of the plain bytes of a gzip, zstd or uncompressed file.
pub(crate) fn decompressed(file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut file = BufReader::with_capacity(256 * 1024, file);
    let start = io::BufRead::fill_buf(&mut file)?;
    let compression = match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
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

/// Unpacks a blob into `destination` by way of `staging` (both on one file system) and returns its unpacked bytes.
///
/// `digest` names the blob in messages, `diff_id` is what the plain tar must hash to. On any error nothing is left at
/// `destination`, and `staging` is removed.
pub(crate) fn unpack_blob(
    reference: &str,
    digest: &str,
    diff_id: &str,
    blob: &Path,
    staging: &Path,
    destination: &Path,
) -> Result<u64, ImageError> {
    let result = try_unpack(blob, staging, diff_id);
    let size = match result {
        Ok(size) => size,
        Err(error) => {
            std::fs::remove_dir_all(staging).ok();
            // A full disk is the node's trouble, not the image's.
            return Err(match error.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem => ImageError::Io {
                    doing: format!("unpacking layer {digest} of image \"{reference}\""),
                    source: error,
                },
                _ => ImageError::Corrupt {
                    reference: reference.to_owned(),
                    digest: digest.to_owned(),
                    cause: error.to_string(),
                },
            });
        }
    };
    settle(staging, destination).map_err(|source| ImageError::Io {
        doing: format!("moving layer {digest} into place"),
        source,
    })?;
    Ok(size)
}

/// Gives a whole layer its name. It is on the disk before it has one: what the index lists is never read again, and a power
/// cut would otherwise leave files of it empty for ever.
fn settle(staging: &Path, destination: &Path) -> io::Result<()> {
    // One call for all files; a wait for each would take seconds for a large layer.
    rustix::fs::syncfs(File::open(staging)?)?;
    // The index has forgotten one of this name, as it does when it could not be written.
    match std::fs::remove_dir_all(destination) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    gantry_durable::rename(staging, destination)
}

fn try_unpack(blob: &Path, staging: &Path, diff_id: &str) -> io::Result<u64> {
    std::fs::create_dir(staging)?;
    // A layer need not say what its root is like.
    std::fs::set_permissions(staging, std::fs::Permissions::from_mode(0o755))?;
    let mut stream = Hashing {
        inner: decompressed(File::open(blob)?)?,
        hasher: Sha256::new(),
    };
    let size = unpack(&mut stream, staging)?;
    let found = format!("sha256:{}", hex(&stream.hasher.finalize()));
    if found != diff_id {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its content hashes to {found}, the image config says {diff_id}"),
        ));
    }
    Ok(size)
}
