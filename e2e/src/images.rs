//! The images that tests run, packed once and imported on each node: there is no registry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{binary, gantry, run};

/// Debian's busybox-static, for [`TOOLS`].
const BUSYBOX: &str = "/bin/busybox";
/// The image with a shell and tar beside the demo's program.
pub const TOOLS: &str = gantry_demo::TOOLS;

/// The demo's versions v1 and v2, and [`TOOLS`], as files.
pub struct Images {
    files: Vec<PathBuf>,
    /// Holds them.
    _directory: tempfile::TempDir,
}

impl Images {
    /// Packs them.
    pub fn pack() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for tarballs")?;
        let mut files = Vec::new();
        let mut create = |name: &str| -> Result<File> {
            files.push(directory.path().join(name));
            File::create(directory.path().join(name)).context("creating a tarball")
        };
        for version in ["v1", "v2"] {
            let file = create(&format!("web-{version}.tar"))?;
            gantry_demo::pack(version, file).context("packing the demo image")?;
        }
        let busybox = fs::read(BUSYBOX).with_context(|| {
            format!(
                "reading {BUSYBOX}: install Debian's package busybox-static, as 'make test' does"
            )
        })?;
        gantry_demo::pack_tools(&busybox, create("tools.tar")?).context("packing the tools")?;
        Ok(Self {
            files,
            _directory: directory,
        })
    }

    /// Imports them into the node of a data directory, with commands that run there.
    pub fn import(&self, command: impl Fn(&Path) -> Command, data_dir: &Path) -> Result<()> {
        for file in &self.files {
            run(command(&gantry()?)
                .args(["image", "import", "--data-dir"])
                .args([data_dir, file]))?;
        }
        Ok(())
    }
}

/// Packs a program of this build, with the libraries that it needs, as an image of this name.
pub fn pack_program(image: &str, program: &str, into: &Path) -> Result<()> {
    let path = binary(program)?;
    let needed = run(Command::new("ldd").arg(&path))?;
    // `libc.so.6 => /lib/.../libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`; what the kernel brings has no path.
    let libraries = needed.split_whitespace();
    let libraries = libraries.filter(|word| word.starts_with('/') && word.contains(".so"));
    let mut files = vec![(program.to_owned(), fs::read(&path)?)];
    for library in libraries {
        let content = fs::read(library).with_context(|| format!("reading {library}"))?;
        files.push((library.trim_start_matches('/').to_owned(), content));
    }
    let file = File::create(into).with_context(|| format!("creating {}", into.display()))?;
    gantry_demo::pack_program(image, program, &files, file).context("packing an image")
}
