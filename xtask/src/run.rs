//! Running other programs: announced, timed, captured, or with their closing lines collected.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The command line as somebody would type it (without the environment).
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

/// Runs a command with its output shown; failure is an error.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    let line = shown(command);
    println!("$ {line}");
    let status = command.stdin(Stdio::null()).status().map_err(|source| start(command, source))?;
    if status.success() { Ok(()) } else { Err(Error::Status { command: line, status: status.to_string() }) }
}

/// Runs a command in silence and gives its standard output; on failure the error shows the end of what it said.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| start(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Error::Status { command: shown(command), status: format!("{}: {}", output.status, last.join(" | ")) })
}

/// Runs a command with its output shown while `line` sees every line of standard output; tells whether it succeeded.
pub(crate) fn watched(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    println!("$ {}", shown(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: shown(command), source })?;
    if let Some(stdout) = child.stdout.take() {
        let mut out = std::io::stdout().lock();
        for text in BufReader::new(stdout).split(b'\n').map_while(std::result::Result::ok) {
            let text = String::from_utf8_lossy(&text);
            line(&text);
            // A closed standard output must not stop the run whose result is still wanted.
            let _ = writeln!(out, "{text}");
        }
    }
    let status = child.wait().map_err(|source| start(command, source))?;
    Ok(status.success())
}

/// Runs a command in silence for at most `limit`; its output is shown only if it fails or does not end.
pub(crate) fn bounded(command: &mut Command, limit: Duration) -> Result<()> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: line.clone(), source })?;
    let drains: Vec<_> = [
        child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>),
        child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>),
    ]
    .into_iter()
    .flatten()
    .map(|mut pipe| {
        thread::spawn(move || {
            let mut said = Vec::new();
            // Reading ends with the child; a broken pipe only shortens what can be shown.
            let _ = pipe.read_to_end(&mut said);
            said
        })
    })
    .collect();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|source| start(command, source))? {
            break Some(status);
        }
        if begun.elapsed() > limit {
            child.kill().map_err(|source| start(command, source))?;
            child.wait().map_err(|source| start(command, source))?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said: Vec<Vec<u8>> = drains.into_iter().filter_map(|drain| drain.join().ok()).collect();
    match status {
        Some(status) if status.success() => Ok(()),
        ended => {
            for text in said {
                println!("{}", String::from_utf8_lossy(&text));
            }
            let status = ended.map_or_else(|| format!("still running after {limit:?}"), |status| status.to_string());
            Err(Error::Status { command: line, status })
        }
    }
}

/// Sends a process a signal, such as `TERM`. The shell does it, which has a `kill` of its own: the program of that name
/// comes with procps, and small images have none.
pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    captured(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")])).map(|_| ())
}

/// The first program of that name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn start(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::signal;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn signals_arrive_and_those_that_do_not_are_errors() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let error = signal(child.id(), "NOSUCH").unwrap_err().to_string();
        assert!(error.contains("kill -NOSUCH"), "{error}");
        assert!(child.try_wait().unwrap().is_none());
        signal(child.id(), "TERM").unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
}
