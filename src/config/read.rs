//! Reading one TOML table: known keys, right types, numbers within bounds.
//!
//! Every fault goes into the report at its place, and reading goes on. What a key means is not known here.

use std::fmt::Display;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Diagnostic, Fault, Report, quoted};
use super::suggest::nearest;
use super::syntax::{At, Given, Span};
use super::units::{format_size, parse_duration, parse_size};

/// A value with its place in the source.
pub type Value<'t> = &'t Spanned<DeValue<'t>>;

/// The keys that one kind of table may have.
#[derive(Debug)]
pub struct Schema {
    /// What the table is called in messages.
    pub name: &'static str,
    /// Where its keys belong, as said of one found elsewhere.
    pub home: &'static str,
    /// Its keys.
    pub keys: &'static [&'static str],
}

/// One table of the source.
pub struct Section<'t> {
    table: &'t DeTable<'t>,
    /// Where its head is.
    pub span: Span,
    schema: &'static Schema,
}

impl<'t> Section<'t> {
    /// Takes `table` as one of the kind `schema`; reports each key that it may not have. `all` are the other
    /// kinds, one of which the key may belong to.
    pub fn new(
        table: &'t DeTable<'t>,
        span: Span,
        schema: &'static Schema,
        all: &[&'static Schema],
        report: &mut Report,
    ) -> Self {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if schema.keys.contains(&name) {
                continue;
            }
            let home = all.iter().find(|other| other.keys.contains(&name));
            let help = match (nearest(name, schema.keys.iter().copied()), home) {
                (Some(near), Some(home)) if near.starts_with(name) => {
                    format!("did you mean `{near}`? {} belongs in {}", quoted(name), home.home)
                }
                (_, Some(home)) => format!("{} belongs in {}", quoted(name), home.home),
                (Some(near), None) => format!("did you mean `{near}`?"),
                (None, None) => format!("keys here are {}", schema.keys.join(", ")),
            };
            report.push(
                Diagnostic::error(format!("unknown key {} in {}", quoted(name), schema.name))
                    .at(key.span(), "")
                    .help(help),
            );
        }
        Self { table, span, schema }
    }

    fn get(&self, key: &str) -> Option<Value<'t>> {
        debug_assert!(self.schema.keys.contains(&key));
        self.table.get(key)
    }

    /// A value read by `read`, which gets the value and says what is wrong with it.
    fn read<T>(&self, key: &str, report: &mut Report, read: impl FnOnce(Value<'t>) -> Result<T, Fault>) -> Given<T> {
        let Some(value) = self.get(key) else { return Given::Absent };
        match read(value) {
            Ok(read) => Given::Is(At { value: read, span: value.span() }),
            Err(fault) => {
                report.push(fault.at(value.span()));
                Given::Wrong
            }
        }
    }

    /// Reports that `key` is missing.
    pub fn missing(&self, key: &str, example: &str, report: &mut Report) {
        report.push(
            Diagnostic::error(format!("{} has no `{key}`", self.schema.name))
                .at(self.span.clone(), "")
                .absence()
                .help(format!("add `{key} = {example}`")),
        );
    }

    /// A string that `parse` makes sense of; `example` is a value as it is written.
    pub fn parsed<T>(
        &self,
        key: &str,
        example: &str,
        report: &mut Report,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Given<T> {
        self.read(key, report, |value| match value.get_ref().as_str() {
            Some(text) => parse(text),
            None => Err(wrong_type(key, "a string", value, example)),
        })
    }

    /// A string as it is.
    pub fn string(&self, key: &str, example: &str, report: &mut Report) -> Given<String> {
        self.parsed(key, example, report, |text| Ok(text.to_owned()))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], report: &mut Report) -> Given<T> {
        let words = || choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let example = choices.first().map_or_else(String::new, |(word, _)| format!("\"{word}\""));
        self.parsed(key, &example, report, |text| match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let fault = Fault::new(format!("`{key}` cannot be {}", quoted(text)));
                Err(match nearest(text, choices.iter().map(|(word, _)| *word)) {
                    Some(near) => fault.help(format!("did you mean \"{near}\"? it is one of {}", words())),
                    None => fault.help(format!("it is one of {}", words())),
                })
            }
        })
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str, report: &mut Report) -> Given<bool> {
        self.read(key, report, |value| {
            value.get_ref().as_bool().ok_or_else(|| wrong_type(key, "true or false", value, "true"))
        })
    }

    /// A whole number within `bounds`.
    pub fn integer<T>(&self, key: &str, bounds: RangeInclusive<T>, report: &mut Report) -> Given<T>
    where
        T: Copy + Display + Into<i128> + TryFrom<i128>,
    {
        self.read(key, report, |value| integer(key, value, &bounds, ""))
    }

    /// A whole number within `bounds`, or a word that stands for `special`.
    pub fn integer_or<T, U>(
        &self,
        key: &str,
        bounds: RangeInclusive<T>,
        word: &str,
        special: U,
        make: impl FnOnce(T) -> U,
        report: &mut Report,
    ) -> Given<U>
    where
        T: Copy + Display + Into<i128> + TryFrom<i128>,
    {
        self.read(key, report, |value| match value.get_ref().as_str() {
            Some(text) if text == word => Ok(special),
            Some(_) | None => integer(key, value, &bounds, &format!(", or \"{word}\"")).map(make),
        })
    }

    /// A duration with its unit, in milliseconds.
    pub fn duration(&self, key: &str, report: &mut Report) -> Given<u32> {
        self.read(key, report, |value| match value.get_ref() {
            DeValue::String(text) => parse_duration(text),
            DeValue::Integer(number) => parse_duration(number.as_str()),
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                Err(wrong_type(key, "a duration", value, "\"2s\""))
            }
        })
    }

    /// A size with its unit, in bytes, within `bounds`; `"none"` too if `or_none`.
    pub fn size(
        &self,
        key: &str,
        bounds: RangeInclusive<u64>,
        or_none: bool,
        report: &mut Report,
    ) -> Given<Option<u64>> {
        self.read(key, report, |value| {
            let bytes = match value.get_ref() {
                DeValue::String(text) if text == "none" && or_none => return Ok(None),
                DeValue::String(text) => parse_size(text)?,
                DeValue::Integer(number) => parse_size(number.as_str())?,
                DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)
                | DeValue::Table(_) => return Err(wrong_type(key, "a size", value, "\"64KiB\"")),
            };
            if bounds.contains(&bytes) {
                return Ok(Some(bytes));
            }
            let (low, high) = (format_size(*bounds.start()), format_size(*bounds.end()));
            Err(Fault::new(format!("`{key}` is out of bounds")).help(format!("it may be from {low} to {high}")))
        })
    }

    /// The values of an array.
    pub fn array(&self, key: &str, example: &str, report: &mut Report) -> Given<Vec<Value<'t>>> {
        self.read(key, report, |value| match value.get_ref().as_array() {
            Some(array) => Ok(array.iter().collect()),
            None => Err(wrong_type(key, "an array", value, example)),
        })
    }

    /// The table under `key`; what is there instead is reported.
    pub fn table(&self, key: &str, shown: &str, report: &mut Report) -> Option<(&'t DeTable<'t>, Span)> {
        let value = self.get(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            let fault = Fault::new(format!("`{key}` must be a table, found {}", type_of(value)));
            report.push(fault.help(format!("begin it with `{shown}`, once")).at(value.span()));
            return None;
        };
        Some((table, value.span()))
    }

    /// The tables of the array of tables under `key`; what is there instead is reported.
    pub fn tables(&self, key: &str, shown: &str, report: &mut Report) -> Vec<(&'t DeTable<'t>, Span)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let help = format!("begin each one with `[[{key}]]` on a line of its own");
        let DeValue::Array(array) = value.get_ref() else {
            let fault = Fault::new(format!("{shown} must be an array of tables, found {}", type_of(value)));
            report.push(fault.help(help).at(value.span()));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for value in array.iter() {
            match value.get_ref() {
                DeValue::Table(table) => tables.push((table, value.span())),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => {
                    let fault = Fault::new(format!("{shown} must be a table, found {}", type_of(value)));
                    report.push(fault.help(help.clone()).at(value.span()));
                }
            }
        }
        tables
    }
}

/// The entries of a table in the order of the text, with the places of their keys.
pub fn entries<'t>(table: &'t DeTable<'t>) -> Vec<(At<String>, Value<'t>)> {
    let mut entries: Vec<_> =
        table.iter().map(|(key, value)| (At { value: key.get_ref().to_string(), span: key.span() }, value)).collect();
    entries.sort_by_key(|(key, _)| key.span.start);
    entries
}

/// A whole number within `bounds`; `or` says what else the key may be.
///
/// # Errors
/// Says what it is instead.
pub fn integer<T>(key: &str, value: Value<'_>, bounds: &RangeInclusive<T>, or: &str) -> Result<T, Fault>
where
    T: Copy + Display + Into<i128> + TryFrom<i128>,
{
    let (low, high) = (*bounds.start(), *bounds.end());
    let range = format!("a whole number from {low} to {high}{or}");
    let DeValue::Integer(number) = value.get_ref() else {
        let fault = Fault::new(format!("`{key}` must be {range}, found {}", type_of(value)));
        return Err(match value.get_ref().as_str() {
            Some(text) if text.parse::<u64>().is_ok() => {
                fault.help(format!("write it without quotes: `{key} = {text}`"))
            }
            Some(_) | None => fault,
        });
    };
    let number = i128::from_str_radix(number.as_str(), number.radix()).ok();
    number
        .filter(|n| (low.into()..=high.into()).contains(n))
        .and_then(|n| T::try_from(n).ok())
        .ok_or_else(|| Fault::new(format!("`{key}` is out of bounds")).help(format!("it is {range}")))
}

fn wrong_type(key: &str, expected: &str, value: Value<'_>, example: &str) -> Fault {
    Fault::new(format!("`{key}` must be {expected}, found {}", type_of(value)))
        .help(format!("write it as in `{key} = {example}`"))
}

/// What kind of value it is, with its article.
pub fn type_of(value: Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
