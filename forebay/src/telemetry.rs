//! The one place where logging is set up.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Starts logging to standard error, as the configuration says.
pub fn start(config: &Config) {
    let filter = EnvFilter::try_new(config.text("log.filter")).unwrap_or_else(|e| {
        eprintln!("forebay: log.filter: {e}; logging warnings");
        EnvFilter::new("warn")
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.text("log.format") {
        "json" => log.json().init(),
        _ => log.init(),
    }
}
