//! The command-line program.
#![forbid(unsafe_code)]

use cdrelay::cli::{Cli, USAGE};
use cdrelay::logging;
use clap::Parser;
use clap::error::ErrorKind;
use std::process::ExitCode;

/// Bodies come and go between records that stay: glibc's allocator, with its heap for every thread, keeps half as much again.
/// How this one is set up stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    let code = match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::print(format_args!("cdrelay: {error}"));
            ExitCode::from(error.exit_code())
        }
    };
    logging::flush();
    code
}
