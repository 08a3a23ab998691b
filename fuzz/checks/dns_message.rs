//! Any bytes as the answer to a question: what is taken of it is bounded and concerns the question, and following its
//! aliases ends.

use workers::dns::answer::{ADDRESSES_MAX, CHAIN_MAX, Found, Meaning, Trail, follow};
use workers::dns::message::{Data, Kind, Mismatch, Question, RECORDS_MAX, read, write};

/// Reads `raw` so.
///
/// # Panics
/// When that does not hold.
pub fn check(raw: &[u8]) {
    for kind in [Kind::A, Kind::Aaaa, Kind::Srv] {
        let id = raw.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        let question = Question { id, name: "app.test".to_owned(), kind };
        // Most inputs would fail at the question: those behind it get one that fits.
        let mut fitting = write(&question, false).expect("the name can be asked for");
        fitting[2] |= 0x80;
        if let Some((counts, rest)) = raw.split_at_checked(10) {
            fitting[2..4].copy_from_slice(&[0x80 | counts[2] & 7, counts[3]]);
            fitting[7] = counts[7];
            fitting[9] = counts[9];
            fitting.extend_from_slice(rest);
        }
        for bytes in [raw, &fitting] {
            let reply = match read(bytes, &question) {
                Ok(reply) => reply,
                Err(Mismatch::NotOurs | Mismatch::Malformed) => continue,
            };
            assert_eq!(bytes[..2], question.id.to_be_bytes());
            assert!(reply.records.len() <= RECORDS_MAX);
            for record in &reply.records {
                assert!(matches!(
                    (&record.data, kind),
                    (Data::A(_), Kind::A)
                        | (Data::Aaaa(_), Kind::Aaaa)
                        | (Data::Srv(_), Kind::Srv)
                        | (Data::Cname(_), _)
                ));
                // What is not a letter is escaped, but for blanks, which have a backslash before them.
                let allowed = |byte: u8| byte == b' ' || byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
                assert!(record.owner.bytes().all(allowed));
            }
            match follow(&reply, Trail::new(question.name.clone())) {
                Meaning::Ask(trail) => {
                    assert!((1..=usize::from(CHAIN_MAX)).contains(&trail.aliases().len()));
                    // Whatever it is called, it can be asked for.
                    let again = Question { name: trail.end().to_owned(), ..question.clone() };
                    assert!(write(&again, true).is_some(), "{again:?}");
                }
                Meaning::Done(part) => match part.found {
                    Ok(Found::Addresses(found)) => assert!((1..=ADDRESSES_MAX).contains(&found.len())),
                    Ok(Found::Services(found)) => assert!((1..=ADDRESSES_MAX).contains(&found.len())),
                    Err(_) => {}
                },
            }
        }
    }
}
