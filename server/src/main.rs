//! The `tally` program: a server without a subcommand, or one of the tools that look into its data.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use tally_server::{Config, Invocation, run, subcommand};

/// Under glibc's allocator a fifth of a put's CPU went into malloc and free (docs/decisions/0003).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status for a command line that makes no sense, as Go's flag package has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // A path with other characters in it than were typed would be another path.
    let args = match std::env::args_os().skip(1).map(OsString::into_string).collect::<Result<Vec<String>, OsString>>() {
        Ok(args) => args,
        Err(arg) => {
            let _ = writeln!(std::io::stderr(), "tally: the argument {arg:?} is not UTF-8; rename what it names");
            return ExitCode::from(USAGE);
        }
    };
    if args.first().is_some_and(|first| !first.starts_with('-')) {
        return subcommand(&args);
    }
    let env = std::env::vars_os().map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()));
    match Config::from_args(&args, env) {
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tally: {error}\nSee `tally --help`.");
            ExitCode::from(USAGE)
        }
        Ok(Invocation::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Serve(config)) => match run(*config) {
            Ok(()) => ExitCode::SUCCESS,
            // It has said why.
            Err(_) => ExitCode::FAILURE,
        },
    }
}
