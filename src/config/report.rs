//! What is wrong with a configuration, for people: severity, place, reason and remedy.
//!
//! Everything is collected, then shown at once. Nothing here decides what is wrong.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// So many diagnostics are written out; the rest is only counted.
const SHOWN_MAX: usize = 100;

/// The text that spans point into.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's path, or what stands for it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but something is probably not as intended.
    Warning,
}

/// A byte range of the source, with what is to be said beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    span: Range<usize>,
    label: String,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    severity: Severity,
    title: String,
    /// The first mark is the place itself, further ones what it has to do with.
    marks: Vec<Mark>,
    help: Vec<String>,
    /// Something is missing: perhaps only because of a syntax error nearby.
    absence: bool,
}

impl Diagnostic {
    /// An error that says `title`.
    #[must_use]
    pub fn error(title: impl Into<String>) -> Self {
        Self { severity: Severity::Error, title: title.into(), marks: Vec::new(), help: Vec::new(), absence: false }
    }

    /// A warning that says `title`.
    #[must_use]
    pub fn warning(title: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(title) }
    }

    /// Points at bytes of the source. The first call gives the place, later ones related places.
    #[must_use]
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.marks.push(Mark { span, label: label.into() });
        self
    }

    /// Says how to mend it.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        // It may quote names from the file, which must not reach the terminal as control sequences.
        let mut help = String::new();
        for c in text.into().chars() {
            if c.is_control() && c != '\n' { help.extend(c.escape_debug()) } else { help.push(c) }
        }
        self.help.push(help);
        self
    }

    /// Says how to mend it, where that is known.
    #[must_use]
    pub fn maybe_help(self, text: Option<String>) -> Self {
        match text {
            Some(text) => self.help(text),
            None => self,
        }
    }

    /// Marks this as said because something is missing.
    #[must_use]
    pub fn absence(mut self) -> Self {
        self.absence = true;
        self
    }

    fn start(&self) -> Option<usize> {
        self.marks.first().map(|mark| mark.span.start)
    }
}

/// What is wrong with a piece of text, before it is known where that text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Fault {
    /// A fault without a remedy.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), help: None }
    }

    /// Says how to mend it.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The error that this is at its place.
    #[must_use]
    pub fn at(self, span: Range<usize>) -> Diagnostic {
        Diagnostic::error(self.what).at(span, "").maybe_help(self.help)
    }
}

/// All findings on one source. Empty = nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    source: Option<Arc<Source>>,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// No findings yet; their spans will point into `source`.
    #[must_use]
    pub fn of(source: Arc<Source>) -> Self {
        Self { source: Some(source), diagnostics: Vec::new() }
    }

    /// A single error that has no place in any text.
    #[must_use]
    pub fn single(diagnostic: Diagnostic) -> Self {
        Self { source: None, diagnostics: vec![diagnostic] }
    }

    /// Adds a finding.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Whether the configuration cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Takes over the findings of `other` on the same source.
    pub fn add(&mut self, other: Report) {
        self.diagnostics.extend(other.diagnostics);
    }

    /// As [`Report::add`], less those that may only follow from the syntax
    /// errors found here: that something is missing, and whatever begins on the line of a finding made here.
    pub fn add_independent(&mut self, other: Report) {
        let Some(source) = self.source.clone() else { return };
        let mut line_starts = vec![0];
        line_starts.extend(source.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1));
        let line = |d: &Diagnostic| d.start().map(|at| line_starts.partition_point(|start| *start <= at));
        let taken: std::collections::BTreeSet<_> = self.diagnostics.iter().filter_map(&line).collect();
        let keep = |d: &Diagnostic| !d.absence && !line(d).is_some_and(|line| taken.contains(&line));
        self.diagnostics.extend(other.diagnostics.into_iter().filter(keep));
    }

    /// Puts the findings in the order of the text, those without a place last.
    pub fn sort(&mut self) {
        self.diagnostics.sort_by_key(|d| d.start().unwrap_or(usize::MAX));
    }

    /// The findings as text of several lines, each with its place in the source; with ANSI colours if `color`.
    /// At most the first hundred are written out. Ends with a newline unless empty.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for diagnostic in self.diagnostics.iter().take(SHOWN_MAX) {
            let blocks: Vec<_> = self.groups(diagnostic).into_iter().map(|group| renderer.render(&[group])).collect();
            out.push_str(&blocks.join("\n"));
            out.push_str("\n\n");
        }
        let more = self.diagnostics.len().saturating_sub(SHOWN_MAX);
        if more > 0 {
            out.push_str(&format!("... and {more} more\n\n"));
        }
        if out.ends_with("\n\n") {
            out.pop();
        }
        out
    }

    /// Each finding as one line, without its place in a picture: for logs. At most the first hundred.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.diagnostics.iter().take(SHOWN_MAX).map(|diagnostic| {
            let mut line = String::new();
            if let (Some(source), Some(at)) = (&self.source, diagnostic.start()) {
                let before = &source.text.as_bytes()[..at.min(source.text.len())];
                let number = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                line = format!("{}:{number}: ", source.name);
            }
            line.push_str(&diagnostic.title);
            for help in &diagnostic.help {
                line.push_str("; ");
                line.push_str(&help.replace('\n', " "));
            }
            line.chars().map(|c| if c.is_control() { '\u{b7}' } else { c }).collect()
        })
    }

    /// With a place: title, places and help in one. Without: each a block of its own.
    fn groups<'a>(&'a self, diagnostic: &'a Diagnostic) -> Vec<Group<'a>> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(diagnostic.title.as_str()));
        let Some(source) = self.source.as_ref().filter(|_| !diagnostic.marks.is_empty()) else {
            let help = |help: &'a String| Group::with_title(Level::HELP.secondary_title(help.as_str()));
            return std::iter::once(group).chain(diagnostic.help.iter().map(help)).collect();
        };
        for (i, mark) in diagnostic.marks.iter().enumerate() {
            let kind = if i == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            group = group.element(snippet(source, mark, kind));
        }
        for help in &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        vec![group]
    }
}

/// The one line a mark begins on. A mark never spans lines: what follows the line end is left out, so that a
/// whole table is pointed at by its head.
fn snippet<'a>(
    source: &'a Source,
    mark: &'a Mark,
    kind: AnnotationKind,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = source.text.as_str();
    let start = text.floor_char_boundary(mark.span.start.min(text.len()));
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let line = text[line_start..line_end].trim_end_matches('\r');
    let from = (start - line_start).min(line.len());
    let to = text.ceil_char_boundary(mark.span.end.clamp(start, text.len())) - line_start;
    let to = to.clamp(from, line.len());
    let number = text[..line_start].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let label = (!mark.label.is_empty()).then_some(mark.label.as_str());
    // The renderer shows ASCII control characters as pictures, but passes on those of Unicode's C1 block, which
    // terminals obey. The middle dot has as many bytes, so the span still fits.
    let line: String = line.chars().map(|c| if ('\u{80}'..='\u{9f}').contains(&c) { '\u{b7}' } else { c }).collect();
    Snippet::source(line).line_start(number).path(source.name.as_str()).annotation(kind.span(from..to).label(label))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// `text` within backticks, fit for a message: control characters escaped, long text cut.
#[must_use]
pub fn quoted(text: &str) -> String {
    const MAX: usize = 60;
    let mut out = String::from("`");
    for c in text.chars().take(MAX) {
        if c.is_control() { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    if text.chars().nth(MAX).is_some() {
        out.push_str("...");
    }
    out.push('`');
    out
}
