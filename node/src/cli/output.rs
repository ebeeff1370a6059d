//! What commands print: tables for people, JSON for programs.
//!
//! Ids, properties and bodies come from devices. On a terminal an escape sequence in one of them could move the cursor,
//! retitle the window or worse, and a direction mark could show a text as another (S-48), so neither gets there as it is.
//! JSON is one object a line, in tables' place and with tables' order, so that it can be read as it comes.

use std::borrow::Cow;
use std::io::{self, Write};

use serde_json::Value;

use super::Failure;

/// Where results go, and in which form.
pub(crate) struct Output<'a> {
    out: &'a mut dyn Write,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    People,
    Json,
}

impl<'a> Output<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, form: Form) -> Self {
        Self { out, form }
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// A line for people; `text` may come from anywhere.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.write(&printable(text))
    }

    /// An empty screen for people; for programs nothing, since each line stands for itself.
    pub(crate) fn clear(&mut self) -> Result<(), Failure> {
        match self.form {
            Form::People => self.write("\x1b[2J\x1b[H"),
            Form::Json => Ok(()),
        }
    }

    /// A JSON value on a line of its own.
    pub(crate) fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.write(&json_text(value))
    }

    /// A JSON value over several lines, for people.
    pub(crate) fn document(&mut self, value: &Value) -> Result<(), Failure> {
        self.write(&escape_json(format!("{value:#}")))
    }

    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Failure> {
        let text = table.render();
        self.write(text.trim_end_matches('\n'))
    }

    /// Whoever reads may have seen enough, as `head` has: that is no failure of the command, but it is its end.
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        let written = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        written.map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                Failure::NobodyReads
            } else {
                Failure::Failed(format!("cannot print: {error}"))
            }
        })
    }
}

/// Columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|name| (*name).to_owned()).collect()] }
    }

    /// Cells may come from anywhere. An empty one shows as `-`, so that columns can be told apart.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl AsRef<str>>) {
        let cell = |cell: &str| match cell {
            "" => "-".to_owned(),
            cell => printable(cell).into_owned(),
        };
        self.rows.push(cells.into_iter().map(|text| cell(text.as_ref())).collect());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// `1 node`, `3 nodes`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// The text with everything that a terminal would act on made visible.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts_on_a_terminal) {
        return Cow::Borrowed(text);
    }
    let visible = |c: char| {
        if acts_on_a_terminal(c) { c.escape_default().to_string() } else { c.to_string() }
    };
    Cow::Owned(text.chars().map(visible).collect())
}

/// A JSON text on one line. JSON escapes the first 32 characters only.
pub(crate) fn json_text(value: &Value) -> String {
    escape_json(value.to_string())
}

/// Such characters stand in strings only, where JSON has escapes for them. Line feeds between members stay.
fn escape_json(text: String) -> String {
    let dangerous = |c: char| c != '\n' && acts_on_a_terminal(c);
    if !text.contains(dangerous) {
        return text;
    }
    let escaped =
        |c: char| if dangerous(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Control characters, and marks that change the direction of text or break its lines.
fn acts_on_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let evil = "\u{1b}]0;owned\u{7}\u{9b}31m\r\n\u{202e}x\u{7f}";
        let mut table = Table::new(&["ID"]);
        table.row([evil]);
        let value = json!({ "id": evil });
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, Form::People);
        output.line(evil).expect("memory takes it");
        output.table(&table).expect("memory takes it");
        output.json(&value).expect("memory takes it");
        output.document(&value).expect("memory takes it");
        let text = String::from_utf8(bytes).expect("it is text");
        assert!(!text.contains(|c| c != '\n' && acts_on_a_terminal(c)), "{text:?}");
    }

    #[test]
    fn escaped_json_says_the_same() {
        let value = json!({ "a": "\u{9b}\u{202e}é\n" });
        let back: Value = serde_json::from_str(&json_text(&value)).expect("it is JSON");
        assert_eq!(back, value);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "STATUS", "REASON"]);
        table.row(["thermometer-1", "enabled", ""]);
        table.row(["p", "disabled", "größer"]);
        assert_eq!(
            table.render(),
            "ID             STATUS    REASON\n\
             thermometer-1  enabled   -\n\
             p              disabled  größer\n"
        );
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_command_without_a_complaint() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let ended = Output::new(&mut Gone, Form::People).line("x");
        assert!(matches!(ended, Err(Failure::NobodyReads)));
    }
}
