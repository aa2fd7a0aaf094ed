//! The rows of `tests/cases` on values.

mod rows;

use rows::{Answer, Row};
use sendgate::http::{
    Buffer, Error, Exchange, HeadForm, Header, Modified, Representation, Request, Rule, Spans, decide, request,
    write_head,
};

fn answer(row: &Row) -> Result<Answer, String> {
    let mut scratch = vec![0; 200_000];
    let lines = row.request.iter().map(|(name, value)| (&name[..], &value[..]));
    let found = request::from_fields(lines, &mut scratch).expect("room for all fields");
    let request = Request {
        method: &row.method,
        http10: row.http10,
        has_body: row.body || found.request.has_body,
        ..found.request
    };
    let headers = Headers(row);
    let ex = Exchange {
        request,
        representation: Representation {
            length: row.length,
            modified: Some(Modified { seconds: row.mtime, nanoseconds: row.mtime_nsec }),
            etag: Some(row.etag.as_bytes()),
            etag_from_mtime: true,
            content_type: Some(&row.content_type),
            ..Representation::default()
        },
        headers: &headers,
        now: row.now,
        seed: 1,
        // What doesn't fit isn't a status either.
        status: u16::try_from(row.status).unwrap_or(u16::MAX),
        evaluate: true,
        close: row.close,
        max_ranges: row.max_ranges,
    };
    let mut spans = Spans::new();
    let decision = decide(&ex, &mut spans).map_err(|error| match error {
        Error::Invalid => "INVALID".to_owned(),
        Error::Field => "FIELD".to_owned(),
    })?;
    let mut space = vec![0; 100_000];
    let mut head = Buffer::new(&mut space);
    write_head(&ex, &decision, &spans, HeadForm::Http1, &mut head);
    Ok(Answer {
        status: decision.status,
        keep_alive: decision.keep_alive,
        content_length: decision.content_length,
        body_length: decision.body_length,
        ranges: spans.iter().map(|span| (span.offset, span.offset + span.length - 1)).collect(),
        head: head.written().to_vec(),
    })
}

/// The row's own fields, where they lie.
struct Headers<'a>(&'a Row);

impl sendgate::http::HeaderList for Headers<'_> {
    fn len(&self) -> usize {
        self.0.headers.len()
    }

    fn get(&self, index: usize) -> Header<'_> {
        let header = &self.0.headers[index];
        let rule = match header.rule.as_str() {
            "default" => Rule::Default,
            "override" => Rule::Override,
            "append" => Rule::Append,
            "remove" => Rule::Remove,
            other => panic!("{}: rule {other}", self.0.name),
        };
        Header { name: &header.name, value: &header.value, rule, frozen: header.frozen }
    }
}

#[test]
fn every_row() {
    rows::run(answer);
}
