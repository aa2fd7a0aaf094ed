//! `cargo bench --bench decide`: what deciding and writing the head costs, without a system call.

#![allow(missing_docs)] // Of what criterion_group makes.

use criterion::{Criterion, criterion_group, criterion_main};
use sendgate::http::{
    Buffer, Exchange, HeadForm, Header, MAX_RANGES, Modified, Representation, Request, Rule, Spans, decide, write_head,
};
use std::hint::black_box;

const ETAG: &[u8] = b"\"ae1b9c2f4d5e6f7-3e8\"";

fn exchange<'a>(request: Request<'a>, headers: &'a [Header<'a>; 1]) -> Exchange<'a> {
    Exchange {
        request,
        representation: Representation {
            length: 1_000_000,
            modified: Some(Modified { seconds: 784_111_777, nanoseconds: 123_456_789 }),
            etag: Some(ETAG),
            etag_from_mtime: true,
            content_type: Some(b"application/octet-stream"),
            ..Representation::default()
        },
        headers,
        now: 1_700_000_000,
        seed: 42,
        status: 200,
        evaluate: true,
        close: false,
        max_ranges: MAX_RANGES,
    }
}

fn decide_and_head(ex: &Exchange<'_>) -> usize {
    let mut spans = Spans::new();
    let mut space = [0; 1024];
    let decision = decide(ex, &mut spans).expect("valid");
    let mut out = Buffer::new(&mut space);
    write_head(ex, &decision, &spans, HeadForm::Http1, &mut out);
    black_box(out.written().len())
}

fn bench(c: &mut Criterion) {
    let headers = [Header { name: b"Cache-Control", value: b"max-age=3600", rule: Rule::Override, frozen: false }];
    let get = Request { method: b"GET", ..Request::default() };
    for (name, request) in [
        ("200", get),
        ("304 by entity tag", Request { if_none_match: Some(ETAG), ..get }),
        ("304 by date", Request { if_modified_since: Some(b"Sun, 06 Nov 1994 08:49:37 GMT"), ..get }),
        ("206", Request { range: Some(b"bytes=1000-1999"), if_range: Some(ETAG), ..get }),
        ("206 of three parts", Request { range: Some(b"bytes=0-99,1000-1999,-500"), ..get }),
        ("416", Request { range: Some(b"bytes=1000000-"), ..get }),
        ("412", Request { if_match: Some(b"\"other\""), ..get }),
    ] {
        c.bench_function(&format!("decide and head/{name}"), |b| {
            b.iter(|| decide_and_head(&exchange(black_box(request), &headers)));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
