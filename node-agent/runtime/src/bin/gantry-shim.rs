//! The re-executed parts of the runtime on their own, without the rest of `gantry`: for this crate's tests and
//! benchmarks, and to measure what a shim costs.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_runtime::dispatch(std::env::args_os()).unwrap_or_else(|| {
        eprintln!("gantry-shim is started by gantry's node agent, not by hand");
        ExitCode::FAILURE
    })
}
