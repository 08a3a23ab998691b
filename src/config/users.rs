//! The file of users: a name and the hash of a password on each line.
//!
//! Reads text only. No password is ever seen here, and no hash is repeated in a message.

use std::collections::HashMap;
use std::str::FromStr as _;

use argon2::password_hash::PasswordHash;
use ipc::forward::User;

use super::report::{Fault, quoted};

/// Users in one file at most.
const USERS_MAX: usize = 100_000;
/// The longest name of a user, in bytes: what SOCKS has room for (RFC 1929 section 2).
const NAME_MAX: usize = 255;
/// The dearest hashes there may be. Each check takes the memory and time that its hash asks for.
const MEMORY_MAX_KIB: u32 = 256 * 1024;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
const BCRYPT_COST_MAX: u32 = 16;

const HASH_HELP: &str = "it is what `argon2 SALT -id -e` or `htpasswd -nB NAME` prints: $argon2id$... or $2y$...";

/// Reads `text`; what is wrong comes with the number of its line, from 1.
pub fn parse(text: &str) -> (Vec<User>, Vec<(usize, Fault)>) {
    let mut users: Vec<User> = Vec::new();
    let mut faults = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, hash) = match line_parts(line) {
            Ok(parts) => parts,
            Err(fault) => {
                faults.push((number, fault));
                continue;
            }
        };
        if let Some(first) = seen.insert(name, number) {
            let fault = Fault::new(format!("the user {} is there twice", quoted(name)));
            faults.push((number, fault.help(format!("remove one of them; the first is in line {first}"))));
            continue;
        }
        if users.len() == USERS_MAX {
            faults.push((number, Fault::new(format!("there are more than {USERS_MAX} users"))));
            break;
        }
        users.push(User { name: name.to_owned(), hash: hash.to_owned() });
    }
    (users, faults)
}

fn line_parts(line: &str) -> Result<(&str, &str), Fault> {
    let Some((name, hash)) = line.split_once(':') else {
        return Err(Fault::new("there is no `:` between a name and a hash").help("write NAME:HASH, one on a line"));
    };
    if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) || name.trim() != name {
        return Err(Fault::new(format!("{} cannot be the name of a user", quoted(name)))
            .help("a name has 1 to 255 bytes, without control characters and without blanks at its ends"));
    }
    let hash = hash.trim_end();
    check_hash(hash).map_err(|why| Fault::new(format!("the hash of {} {why}", quoted(name))).help(HASH_HELP))?;
    Ok((name, hash))
}

/// Whether the libraries that will check passwords can read it, and can do so in bounded time.
fn check_hash(hash: &str) -> Result<(), String> {
    if hash.starts_with("$2") {
        if !matches!(hash.get(..4), Some("$2a$" | "$2b$" | "$2y$")) {
            return Err("is of a form of bcrypt that is not safe".to_owned());
        }
        bcrypt::HashParts::from_str(hash).map_err(|_| "is no whole bcrypt hash".to_owned())?;
        return match hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok()) {
            Some(4..=BCRYPT_COST_MAX) => Ok(()),
            Some(_) | None => Err(format!("has a cost that is not from 4 to {BCRYPT_COST_MAX}")),
        };
    }
    if !hash.starts_with("$argon2id$") {
        return Err("is of no kind that is read here".to_owned());
    }
    let parsed = PasswordHash::new(hash).map_err(|error| format!("cannot be read: {error}"))?;
    let params = argon2::Params::try_from(&parsed).map_err(|error| format!("cannot be read: {error}"))?;
    if parsed.salt.is_none() || parsed.hash.is_none() {
        return Err("lacks its salt or the hash itself".to_owned());
    }
    if params.m_cost() > MEMORY_MAX_KIB || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
        return Err(format!("asks for more than m={MEMORY_MAX_KIB}, t={PASSES_MAX}, p={LANES_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGON2: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC";
    const BCRYPT: &str = "$2y$04$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK";

    fn faults(text: &str) -> Vec<(usize, String)> {
        parse(text).1.into_iter().map(|(line, fault)| (line, fault.what)).collect()
    }

    #[test]
    fn names_and_hashes_of_both_kinds_are_read() {
        let (users, faults) = parse(&format!("# staff\nann:{ARGON2}\n\nbob b.:{BCRYPT} \r\n"));
        assert_eq!(faults, []);
        let shown: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.hash.as_str())).collect();
        assert_eq!(shown, [("ann", ARGON2), ("bob b.", BCRYPT)]);
    }

    #[test]
    fn what_is_wrong_comes_with_its_line() {
        let text = format!("ann:{ARGON2}\nbob\n:{ARGON2}\n x:{ARGON2}\nann:{ARGON2}\ncy:secret\n");
        let found = faults(&text);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!(found[3].1.contains("twice"));
        assert!(!found[4].1.contains("secret"), "{found:?}");
    }

    #[test]
    fn hashes_that_are_broken_weak_or_too_dear_are_refused() {
        for hash in [
            "",
            "$1$salt$hash",
            "$apr1$salt$hash",
            "{SHA}abc",
            "$2x$04$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK",
            "$2y$04$DtTq..GtZEd.xTa43Bl6Fu",
            "$2y$31$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK",
            "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC",
            "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ",
            "$argon2id$v=19$m=9999999,t=1,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC",
            "$argon2id$v=19$m=8,t=65,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC",
        ] {
            assert_eq!(faults(&format!("ann:{hash}")).len(), 1, "{hash}");
        }
    }
}
