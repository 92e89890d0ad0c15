//! `gantry-demo DIRECTORY [BUSYBOX]`: writes `web-v1.tar`, `web-v2.tar` and `web-broken.tar` there; and `tools.tar`, given a
//! static busybox.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (directory, busybox) = match arguments.as_slice() {
        [directory] => (Path::new(directory), None),
        [directory, busybox] => (Path::new(directory), Some(Path::new(busybox))),
        _ => {
            eprintln!("usage: gantry-demo DIRECTORY [BUSYBOX]");
            return ExitCode::from(2);
        }
    };
    match write(directory, busybox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path, busybox: Option<&Path>) -> io::Result<()> {
    let explain = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let create = |name: &str, pack: &dyn Fn(File) -> io::Result<()>| {
        let path = directory.join(name);
        File::create(&path)
            .and_then(pack)
            .map_err(|error| explain(&path, error))?;
        println!("{}", path.display());
        Ok::<(), io::Error>(())
    };
    for version in ["v1", "v2"] {
        create(&format!("web-{version}.tar"), &|file| {
            gantry_demo::pack(version, file)
        })?;
    }
    create("web-broken.tar", &|file| {
        gantry_demo::pack_broken("broken", file)
    })?;
    if let Some(path) = busybox {
        let busybox = fs::read(path).map_err(|error| explain(path, error))?;
        create("tools.tar", &|file| gantry_demo::pack_tools(&busybox, file))?;
    }
    Ok(())
}
