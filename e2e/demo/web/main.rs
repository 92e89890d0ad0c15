//! The demo image's only program, with nothing but `std`: a web server, or a client of one.
//!
//! `web` is an HTTP/1.1 server on port 8080 (or `$PORT`), see [`server`]; `web get URL` asks once; `web load URL` asks
//! at a steady rate and counts what fails, see [`load`]. The server and the load end in good order on SIGTERM.
#![allow(unknown_lints)]

mod connection;
mod get;
mod load;
mod server;
mod signal;
mod target;

use std::process::ExitCode;

const USAGE: &str = "\
usage: web                      serve on port 8080, or $PORT
       web get URL              print the answer
       web load URL [OPTIONS]   send requests at a steady rate until SIGTERM

options of load:
  --rate N              requests per second (100)
  --connections N       kept-alive connections, used in turn (10)
  --mode MODE           new: a connection per request; keep-alive (new)
  --seconds N           stop after that long
  --timeout-ms N        a request that takes longer has failed (5000)
  --messages N          failures to tell in full (20)";

fn main() -> ExitCode {
    if let Err(error) = signal::install() {
        eprintln!("error: preparing for SIGTERM: {error}");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((mode, options)) = arguments.split_first() else {
        return server::run();
    };
    let done = match mode.as_str() {
        "get" => get::run(options),
        "load" => load::run(options),
        _ => Err(format!("{mode:?} is nothing this program does")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}\n{USAGE}");
        ExitCode::from(2)
    })
}
