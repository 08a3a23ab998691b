//! The process's own log, on standard error: one line an event, the same format in every role.

use std::io::Write;

/// Starts logging as `role`. The default level is info; `level` (or what the master passed on) replaces it,
/// and `RUST_LOG` stands above both.
pub fn start(role: &str, level: Option<&str>) {
    let inherited = std::env::var(crate::LOG_LEVEL_VARIABLE).ok();
    let level = level.or(inherited.as_deref()).unwrap_or("info");
    let role = format!("{role}[{}]", std::process::id());
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(move |out, record| {
            let time = out.timestamp_millis();
            let style = out.default_level_style(record.level());
            writeln!(out, "{time} {style}{:<5}{style:#} {role}: {}", record.level(), record.args())
        })
        .init();
}
