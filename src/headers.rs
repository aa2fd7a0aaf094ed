//! A list of response fields of which some are frozen: nobody changes them any more. Pure.

#![forbid(unsafe_code)]

use crate::http::{Header, HeaderList, Rule, is_field, is_framing};
use crate::memory::{OutOfMemory, try_grow};

/// Why a list was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The name is no token, or the value more than one line.
    Malformed,
    Frozen,
    OutOfMemory,
}

impl From<OutOfMemory> for Refused {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The lines in the order in which they are sent. A frozen absence is a line that removes.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    /// Name and value, one behind the other.
    text: Vec<u8>,
    name_length: usize,
    rule: Rule,
    frozen: bool,
}

impl Line {
    fn new(header: &Header<'_>) -> Result<Self, OutOfMemory> {
        let mut text = Vec::new();
        text.try_reserve_exact(header.name.len() + header.value.len())?;
        text.extend_from_slice(header.name);
        text.extend_from_slice(header.value);
        Ok(Self { text, name_length: header.name.len(), rule: header.rule, frozen: header.frozen })
    }

    fn is_named(&self, name: &[u8]) -> bool {
        self.text[..self.name_length].eq_ignore_ascii_case(name)
    }
}

impl Headers {
    /// In the place of all lines of that name, where the first of them was.
    pub(crate) fn set(&mut self, header: &Header<'_>) -> Result<(), Refused> {
        let mut line = Some(self.line(header)?);
        self.lines.retain_mut(|old| !old.is_named(header.name) || line.take().map(|line| *old = line).is_some());
        line.map_or(Ok(()), |line| self.push(line))
    }

    /// One line more.
    pub(crate) fn add(&mut self, header: &Header<'_>) -> Result<(), Refused> {
        let line = self.line(header)?;
        // Room first: what fails changes nothing.
        let count = self.lines.len() + 1;
        try_grow(&mut self.lines, count)?;
        // That there shall be none is over, unless that is what is added.
        self.lines.retain(|old| old.rule != Rule::Remove || !old.is_named(header.name));
        self.lines.push(line);
        // All of it, or it would be sent in part where a 304 drops what isn't frozen.
        if header.frozen {
            self.freeze_lines(header.name);
        }
        Ok(())
    }

    /// Freezes the lines of that name. Returns whether there are any.
    fn freeze_lines(&mut self, name: &[u8]) -> bool {
        let mut any = false;
        for line in self.lines.iter_mut().filter(|line| line.is_named(name)) {
            (line.frozen, any) = (true, true);
        }
        any
    }

    /// Takes all lines of that name away.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<(), Refused> {
        self.check(name, b"")?;
        self.lines.retain(|line| !line.is_named(name));
        Ok(())
    }

    /// What there is of that name, or that there is none, is not changed any more.
    pub(crate) fn freeze(&mut self, name: &[u8]) -> Result<(), Refused> {
        if !is_field(name, b"") {
            return Err(Refused::Malformed);
        }
        if self.freeze_lines(name) {
            return Ok(());
        }
        if is_framing(name) {
            return Err(Refused::Malformed);
        }
        self.push(Line::new(&Header { name, value: b"", rule: Rule::Remove, frozen: true })?)
    }

    pub(crate) fn is_frozen(&self, name: &[u8]) -> bool {
        self.lines.iter().any(|line| line.frozen && line.is_named(name))
    }

    fn check(&self, name: &[u8], value: &[u8]) -> Result<(), Refused> {
        if !is_field(name, value) {
            Err(Refused::Malformed)
        } else if self.is_frozen(name) {
            Err(Refused::Frozen)
        } else {
            Ok(())
        }
    }

    fn line(&self, header: &Header<'_>) -> Result<Line, Refused> {
        self.check(header.name, header.value)?;
        Ok(Line::new(header)?)
    }

    fn push(&mut self, line: Line) -> Result<(), Refused> {
        let count = self.lines.len() + 1;
        try_grow(&mut self.lines, count)?;
        self.lines.push(line);
        Ok(())
    }
}

impl HeaderList for Headers {
    fn len(&self) -> usize {
        self.lines.len()
    }

    fn get(&self, index: usize) -> Header<'_> {
        let line = &self.lines[index];
        let (name, value) = line.text.split_at(line.name_length);
        Header { name, value, rule: line.rule, frozen: line.frozen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(name: &'a [u8], value: &'a [u8], rule: Rule, frozen: bool) -> Header<'a> {
        Header { name, value, rule, frozen }
    }

    #[test]
    fn a_line_that_is_added_frozen_freezes_all_lines() {
        let mut headers = Headers::default();
        headers.add(&header(b"Link", b"a", Rule::Append, false)).unwrap();
        headers.add(&header(b"link", b"b", Rule::Append, true)).unwrap();
        assert!((0..2).all(|index| headers.get(index).frozen));
    }

    #[test]
    fn a_field_that_was_to_be_removed_can_be_added() {
        let mut headers = Headers::default();
        headers.set(&header(b"ETag", b"", Rule::Remove, false)).unwrap();
        headers.add(&header(b"etag", b"\"a\"", Rule::Override, false)).unwrap();
        assert_eq!((headers.len(), headers.get(0).rule), (1, Rule::Override));
    }

    #[test]
    fn the_librarys_own_cannot_be_kept_away() {
        for name in [&b"Content-Length"[..], b"connection", b"Transfer-Encoding", b"Keep-Alive", b"Content-Range"] {
            let mut headers = Headers::default();
            assert_eq!(headers.freeze(name), Err(Refused::Malformed));
            assert!(!headers.is_frozen(name) && headers.is_empty());
        }
        // What the application says of it can be frozen.
        let mut headers = Headers::default();
        headers.set(&header(b"Content-Length", b"5", Rule::Override, false)).unwrap();
        assert_eq!(headers.freeze(b"Content-Length"), Ok(()));
    }

    /// Bytes as the rows have them: a character up to U+00FF each.
    fn latin1(text: &str) -> Vec<u8> {
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    }

    #[test]
    fn the_rows_that_all_languages_share() {
        let rows: toml::Table = include_str!("../tests/header_lists.toml").parse().unwrap();
        let cases = rows["case"].as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let mut headers = Headers::default();
            for step in case["steps"].as_array().unwrap() {
                let words: Vec<Vec<u8>> =
                    step.as_array().unwrap().iter().map(|word| latin1(word.as_str().unwrap())).collect();
                let step: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                let header = |name, value| header(name, value, Rule::Override, false);
                let (ended, error) = match step[..] {
                    [b"set", name, value, ref error @ ..] => (headers.set(&header(name, value)), error),
                    [b"add", name, value, ref error @ ..] => (headers.add(&header(name, value)), error),
                    [b"remove", name, ref error @ ..] => (headers.remove(name), error),
                    [b"freeze", name, ref error @ ..] => (headers.freeze(name), error),
                    _ => panic!("{name}: {step:?}"),
                };
                let expected = match error {
                    [] => Ok(()),
                    [b"frozen"] => Err(Refused::Frozen),
                    [b"field"] => Err(Refused::Malformed),
                    _ => panic!("{name}: {step:?}"),
                };
                assert_eq!(ended, expected, "{name}: {step:?}");
            }
            let lines: Vec<_> = (0..headers.len())
                .map(|index| headers.get(index))
                .filter(|header| header.rule != Rule::Remove)
                .map(|header| (header.name.to_vec(), header.value.to_vec()))
                .collect();
            let expected: Vec<_> = case["lines"]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| (latin1(line[0].as_str().unwrap()), latin1(line[1].as_str().unwrap())))
                .collect();
            assert_eq!(lines, expected, "{name}");
            for (key, frozen) in [("frozen", true), ("open", false)] {
                for field in case.get(key).and_then(toml::Value::as_array).into_iter().flatten() {
                    let field = latin1(field.as_str().unwrap());
                    assert_eq!(headers.is_frozen(&field), frozen, "{name}: {field:?}");
                }
            }
        }
    }
}
