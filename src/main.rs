//! Arguments to role.

mod config;

use std::path::Path;

fn main() {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let path = args.next().unwrap_or_default();
    match config::gather(Some(Path::new(&path)), &config::Options::default()) {
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
