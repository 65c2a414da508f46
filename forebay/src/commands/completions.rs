//! `forebay completions`.

use clap::CommandFactory;
use image::Result;

use crate::cli::{Cli, CompletionsArgs};
use crate::output::print;

/// Prints a completion script for a shell.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "forebay", &mut script);
    print(&script)
}
