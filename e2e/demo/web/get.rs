//! A single request: prints the body of the answer.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Failure, Kind};
use crate::target::Target;

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for the URL after `get`; arguments that are wrong are an error.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, String> {
    let [url] = arguments else {
        return Err("get takes one URL".to_owned());
    };
    Ok(match get(&Target::parse(url)?) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {url}: {failure}");
            ExitCode::FAILURE
        }
    })
}

fn get(target: &Target) -> Result<(), Failure> {
    let deadline = Instant::now() + TIMEOUT;
    let mut connection = Connection::open(target, deadline)?;
    let answer = connection.request(target, false, deadline)?;
    let body = String::from_utf8_lossy(&answer.body);
    if answer.status != 200 {
        let message = format!("{} {}", answer.status, body.trim_end());
        return Err(Failure::new(Kind::Status, message));
    }
    std::io::stdout()
        .write_all(&answer.body)
        .map_err(|error| Failure::new(Kind::Closed, format!("printing the answer: {error}")))
}
