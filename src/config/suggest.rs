//! "Did you mean": the known word nearest to an unknown one.

/// Longer words are not compared.
const WORD_MAX: usize = 64;

/// The one of `known` that `word` is most likely a misspelling of, if any is near enough.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > WORD_MAX {
        return None;
    }
    let lower = word.to_lowercase().replace(['-', '_'], "");
    let allowed = match lower.chars().count() {
        0 => return None,
        1..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    let score = |name: &str| {
        let name = name.to_lowercase().replace(['-', '_'], "");
        let edits = strsim::damerau_levenshtein(&lower, &name);
        // A plural or a shortened word is a likely slip, however many letters it lacks.
        let prefix = lower.len() >= 3 && (name.starts_with(&lower) || lower.starts_with(&name) && name.len() >= 3);
        if prefix { edits.min(1) } else { edits }
    };
    known
        .into_iter()
        .filter(|name| name.len() <= WORD_MAX)
        .map(|name| (score(name), name))
        .filter(|(edits, name)| *edits <= allowed && *edits < name.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_word() {
        let words = ["bind", "mode", "to", "backlog", "timeouts", "idle_per_server"];
        assert_eq!(nearest("bnid", words), Some("bind"));
        assert_eq!(nearest("timeout", words), Some("timeouts"));
        assert_eq!(nearest("Mode", words), Some("mode"));
        assert_eq!(nearest("idle-per-server", words), Some("idle_per_server"));
        assert_eq!(nearest("leastconn", ["round-robin", "least-connections"]), Some("least-connections"));
        assert_eq!(nearest("certificate", words), None);
        assert_eq!(nearest("x", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"bind".repeat(1000), words), None);
    }
}
