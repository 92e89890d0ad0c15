//! The demo image's only program, with nothing but `std`: a web server, or the load on one.
//!
//! `web` is an HTTP/1.1 server on port 8080 (or `$PORT`), see [`server`]; `web load URL` sends requests at a steady
//! rate and counts what fails, see [`load`]. Either ends in good order on SIGTERM.
#![allow(unknown_lints)]

mod load;
mod server;
mod signal;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = signal::install() {
        eprintln!("error: preparing for SIGTERM: {error}");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        None => server::run(),
        Some((mode, options)) if mode == "load" => load::run(options),
        Some((mode, _)) => {
            eprintln!(
                "error: {mode:?} is nothing this program does\n{}",
                load::USAGE
            );
            ExitCode::from(2)
        }
    }
}
