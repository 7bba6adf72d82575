//! The subcommands: tools that look into the data of a server without starting one.

mod check;
mod dump;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::run::chain;

/// Runs `tally wal …` or `tally check …`. `args` excludes the program's name.
pub fn subcommand(args: &[String]) -> ExitCode {
    let words = std::iter::once("tally").chain(args.iter().map(String::as_str));
    let matches = match command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match matches.subcommand() {
        Some(("wal", wal)) => match wal.subcommand() {
            Some(("dump", matches)) => dump(matches),
            Some(("verify", matches)) => verify(matches),
            Some(_) | None => Ok(ExitCode::from(2)),
        },
        Some(("check", matches)) => check(matches),
        Some(_) | None => Ok(ExitCode::from(2)),
    };
    result.unwrap_or_else(|line| {
        let _ = writeln!(io::stderr(), "tally: {line}");
        ExitCode::FAILURE
    })
}

fn command() -> Command {
    let directory = Arg::new("dir").required(true).value_parser(value_parser!(PathBuf)).help("directory of the log");
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("one JSON object per line");
    let index = |name: &'static str| Arg::new(name).long(name).value_name("INDEX").value_parser(value_parser!(u64));
    let dump = Command::new("dump")
        .about("Print the records of a log; works on a copy of a live directory too")
        .arg(directory.clone())
        .arg(index("from").help("no entries before this index"))
        .arg(index("to").help("no entries after this index"))
        .arg(
            Arg::new("type")
                .long("type")
                .value_name("TYPE")
                .value_delimiter(',')
                .value_parser(["crc", "metadata", "state", "snapshot", "entry"])
                .help("only records of these types"),
        )
        .arg(Arg::new("grep").long("grep").value_name("TEXT").help(
            "only commands that can write or delete a key with this text in it: also deletions of ranges with room \
                 for one, and revocations and expiries of leases, which do not name their keys",
        ))
        .arg(json);
    let verify = Command::new("verify").about("Check every checksum and the order of a log").arg(directory);
    let directory_flag =
        |name: &'static str| Arg::new(name).long(name).value_name("DIR").value_parser(value_parser!(PathBuf));
    let check = Command::new("check")
        .about(
            "Compare the state of a stopped server with what its log says. All data is built again from the log in a \
             directory under $TMPDIR (/tmp if it is not set), and deleted afterwards. Where the log was purged that is \
             left out: only the places of log and database are compared, as at a start",
        )
        .arg(directory_flag("data-dir").required(true).help("the server's data directory, or a copy of it"))
        .arg(directory_flag("wal-dir").help("directory of the log, if the server was given one"));
    let wal = Command::new("wal").about("Look into a write-ahead log").subcommand_required(true);
    Command::new("tally")
        .about("Without a subcommand, a server is started: see `tally --help`")
        .subcommand_required(true)
        .subcommand(wal.subcommand(dump).subcommand(verify))
        .subcommand(check)
}

/// The exit status, or the one line that says what went wrong.
type Outcome = Result<ExitCode, String>;

fn failed<E: std::error::Error + 'static>(error: E) -> String {
    chain(&error)
}

fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    // Required by the definition of the argument.
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

fn dump(matches: &ArgMatches) -> Outcome {
    let filter = dump::Filter {
        from: matches.get_one::<u64>("from").copied(),
        to: matches.get_one::<u64>("to").copied(),
        types: matches.get_many::<String>("type").unwrap_or_default().cloned().collect(),
        grep: matches.get_one::<String>("grep").cloned(),
    };
    let out = io::BufWriter::new(io::stdout().lock());
    finish(dump::dump(&path(matches, "dir"), &filter, matches.get_flag("json"), out))
}

fn verify(matches: &ArgMatches) -> Outcome {
    let report = tally_wal::dump::verify(&path(matches, "dir")).map_err(failed)?;
    print(&report)?;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(matches: &ArgMatches) -> Outcome {
    let report = check::check(&path(matches, "data-dir"), matches.get_one::<PathBuf>("wal-dir").cloned());
    let report = report.map_err(failed)?;
    print(&format!("{}\n", report.to_json()))?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A reader that has seen enough and closed the pipe is no failure.
fn print(text: &impl Display) -> Result<(), String> {
    match write!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot print: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn finish(result: Result<(), dump::DumpError>) -> Outcome {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(dump::DumpError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }
}
