//! Arguments to role.

mod config;

use std::path::Path;

fn main() {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let (path, options) = match args.next() {
        Some(path) if path != "--" => (Some(path), config::Options::default()),
        Some(_) | None => {
            let rest: Vec<String> = args.collect();
            let mut options = config::Options::default();
            for pair in rest.chunks(2) {
                match (pair.first().map(String::as_str), pair.get(1)) {
                    (Some("--listen"), Some(value)) => options.listen.push(value.clone()),
                    (Some("--backend"), Some(value)) => options.backend.push(value.clone()),
                    (Some("--mode"), Some(value)) => options.mode = config::parse_mode(value).ok(),
                    (Some("--workers"), Some(value)) => options.workers = value.parse().ok(),
                    (Some(_) | None, _) => {}
                }
            }
            (None, options)
        }
    };
    match config::gather(path.as_deref().map(Path::new), &options) {
        Ok(loaded) => {
            eprint!("{}", loaded.warnings.render(true));
            if command == "dump" {
                print!("{}", config::dump(&loaded.snapshot, &loaded.process));
            }
        }
        Err(report) => {
            eprint!("{}", report.render(true));
            std::process::exit(2);
        }
    }
}
