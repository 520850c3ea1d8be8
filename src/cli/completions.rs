//! `cdrelay completions` and `cdrelay man`

use super::output::Output;
use super::{Cli, CommandError};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

/// Print the completions of a shell, for example `cdrelay completions bash > /etc/bash_completion.d/cdrelay`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub fn execute(self) -> Result<(), CommandError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cdrelay", &mut text);
        print(&text)
    }
}

/// Prints the man page: that of the program, followed by those of its subcommands.
pub fn man() -> Result<(), CommandError> {
    let mut text = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        clap_mangen::Man::new(subcommand.clone()).render(&mut text)?;
    }
    print(&text)
}

fn print(text: &[u8]) -> Result<(), CommandError> {
    let mut out = Output::new();
    out.bytes(text)?;
    Ok(out.flush()?)
}
