//! `gantry-demo DIRECTORY`: writes `web-v1.tar` and `web-v2.tar` there.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory] = arguments.as_slice() else {
        eprintln!("usage: gantry-demo DIRECTORY");
        return ExitCode::from(2);
    };
    for version in ["v1", "v2"] {
        let path = Path::new(directory).join(format!("web-{version}.tar"));
        let written = File::create(&path).and_then(|file| gantry_demo::pack(version, file));
        if let Err(error) = written {
            eprintln!("error: writing {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
