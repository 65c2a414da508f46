//! `forebay completions`.

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs};

/// Prints a completion script for a shell.
pub fn run(args: &CompletionsArgs) {
    clap_complete::generate(args.shell, &mut Cli::command(), "forebay", &mut std::io::stdout());
}
