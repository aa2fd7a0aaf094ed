//! What a front server sends, cut anywhere: one request at a time on a connection.

use super::pairs::{Pairs, lengths};
use super::{
    ABORT_REQUEST, BEGIN_REQUEST, CANT_MPX_CONN, GET_VALUES, GET_VALUES_RESULT, HEADER, PARAMS, REQUEST_COMPLETE,
    STDIN, STDOUT, UNKNOWN_ROLE, UNKNOWN_TYPE, VERSION, end_request, header,
};
use crate::http::Buffer;
use crate::memory::{OutOfMemory, try_grow};

/// Not FastCGI, or against its rules: nothing that follows can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Why parsing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    Malformed,
    OutOfMemory,
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// What a front server may be told, and what it may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the parameters of a request, as they are encoded.
    pub(crate) params: usize,
    /// Connections, and requests, at the same time: what GET_VALUES is answered with (4.1).
    pub(crate) connections: u32,
    pub(crate) requests: u32,
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Nothing yet: all bytes were used.
    More,
    /// The parameters of a request, all of them.
    Params,
    /// Some of its content; empty: its end.
    Stdin(&'a [u8]),
    /// The front server doesn't want the answer any more: end the request.
    Abort,
    /// `reply` is to be sent.
    Reply,
}

/// The request that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) id: u16,
    /// The connection is to be kept afterwards.
    pub(crate) keep: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Params,
    Stdin,
    Done,
}

/// What is left of the record under way.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    kind: u8,
    id: u16,
    content: usize,
    padding: usize,
}

#[derive(Debug)]
pub(crate) struct Parser {
    limits: Limits,
    head: [u8; HEADER],
    head_length: usize,
    /// None: between two records, or in a header.
    record: Option<Record>,
    current: Option<Current>,
    /// Of the current request, as they came.
    params: Vec<u8>,
    /// The content of a record that is only understood as a whole.
    control: Vec<u8>,
    reply: Vec<u8>,
    /// Whether the connection is to be kept after the reply.
    reply_keeps: bool,
    failed: Option<Error>,
    /// Answers that were sent before `end` was called for them: the next request has come meanwhile.
    overtaken: u32,
}

impl Parser {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            head: [0; HEADER],
            head_length: 0,
            record: None,
            current: None,
            params: Vec::new(),
            control: Vec::new(),
            reply: Vec::new(),
            reply_keeps: true,
            failed: None,
            overtaken: 0,
        }
    }

    /// The request that was begun and has not ended.
    pub(crate) fn current(&self) -> Option<Current> {
        self.current
    }

    /// Its parameters, once there was `Event::Params`, which has found them to be well-formed.
    pub(crate) fn params(&self) -> Pairs<'_> {
        Pairs::new(&self.params)
    }

    /// What is to be sent after `Event::Reply`, and whether the connection is to be kept then.
    pub(crate) fn reply(&self) -> (&[u8], bool) {
        (&self.reply, self.reply_keeps || self.current.is_some())
    }

    /// The answer to the current request was sent. What it still has of content is skipped.
    pub(crate) fn end(&mut self) {
        if self.overtaken > 0 {
            self.overtaken -= 1;
        } else {
            self.current = None;
        }
    }

    /// Nothing more can be made of this connection.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failed = Some(error);
    }

    /// Takes bytes up to the next event. Returns how many.
    pub(crate) fn feed<'a>(&mut self, data: &'a [u8]) -> Result<(usize, Event<'a>), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if data.is_empty() {
            return Ok((0, Event::More));
        }
        self.reply.clear();
        let mut rest = data;
        loop {
            match self.step(&mut rest) {
                Ok(Event::More) if !rest.is_empty() => {}
                Ok(event) => return Ok((data.len() - rest.len(), event)),
                Err(error) => {
                    self.failed = Some(error);
                    return Err(error);
                }
            }
        }
    }

    /// Takes some bytes, at least one unless there is none.
    fn step<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Event<'a>, Error> {
        let Some(record) = self.record else {
            let head = take(rest, HEADER - self.head_length);
            self.head[self.head_length..self.head_length + head.len()].copy_from_slice(head);
            self.head_length += head.len();
            if self.head_length < HEADER {
                return Ok(Event::More);
            }
            self.head_length = 0;
            return self.begin();
        };
        if record.content == 0 {
            let padding = take(rest, record.padding);
            self.left(Record { padding: record.padding - padding.len(), ..record });
            return Ok(Event::More);
        }
        let content = take(rest, record.content);
        let record = Record { content: record.content - content.len(), ..record };
        self.left(record);
        self.content(record, content)
    }

    /// What is left of the record under way.
    fn left(&mut self, record: Record) {
        self.record = (record.content > 0 || record.padding > 0).then_some(record);
    }

    /// A header is complete.
    fn begin<'a>(&mut self) -> Result<Event<'a>, Error> {
        let [version, kind, i, d, l, n, padding, _] = self.head;
        if version != VERSION {
            return Err(Error::Malformed);
        }
        let content = usize::from(u16::from_be_bytes([l, n]));
        let record = Record { kind, id: u16::from_be_bytes([i, d]), content, padding: usize::from(padding) };
        self.control.clear();
        self.left(record);
        if content > 0 {
            return Ok(Event::More);
        }
        // What ends a stream, or needs no content.
        match kind {
            PARAMS if self.is_in(record.id, Phase::Params) => self.end_params(),
            STDIN if self.is_in(record.id, Phase::Stdin) => {
                self.set_phase(Phase::Done);
                Ok(Event::Stdin(&[]))
            }
            STDIN if self.is_in(record.id, Phase::Params) => Err(Error::Malformed),
            _ => self.complete(record),
        }
    }

    fn is_in(&self, id: u16, phase: Phase) -> bool {
        self.current.is_some_and(|current| current.id == id && current.phase == phase)
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(current) = &mut self.current {
            current.phase = phase;
        }
    }

    /// Some content of a record, of which `record` is what is left.
    fn content<'a>(&mut self, record: Record, content: &'a [u8]) -> Result<Event<'a>, Error> {
        match record.kind {
            PARAMS if self.is_in(record.id, Phase::Params) => {
                if self.params.len() + content.len() > self.limits.params {
                    return self.refuse_params(record.id);
                }
                append(&mut self.params, content)?;
                Ok(Event::More)
            }
            STDIN if self.is_in(record.id, Phase::Stdin) => Ok(Event::Stdin(content)),
            // Content before the parameters are over: they would never end.
            STDIN if self.is_in(record.id, Phase::Params) => Err(Error::Malformed),
            BEGIN_REQUEST | GET_VALUES => {
                append(&mut self.control, content)?;
                if record.content > 0 { Ok(Event::More) } else { self.complete(record) }
            }
            _ if record.content > 0 => Ok(Event::More),
            _ => self.complete(record),
        }
    }

    /// All content of a record that is no stream's has come.
    fn complete<'a>(&mut self, record: Record) -> Result<Event<'a>, Error> {
        match (record.kind, record.id) {
            (BEGIN_REQUEST, id) => self.begin_request(id),
            (ABORT_REQUEST, id) => self.abort(id),
            (GET_VALUES, 0) => self.tell_values(),
            // 4.2. Others are of requests that are over, were refused, or are no business of a Responder.
            (kind, 0) if !(BEGIN_REQUEST..=UNKNOWN_TYPE).contains(&kind) => {
                let mut content = [0; 8];
                content[0] = kind;
                append(&mut self.reply, &header(UNKNOWN_TYPE, 0, 8))?;
                append(&mut self.reply, &content)?;
                self.reply_keeps = true;
                Ok(Event::Reply)
            }
            _ => Ok(Event::More),
        }
    }

    fn begin_request<'a>(&mut self, id: u16) -> Result<Event<'a>, Error> {
        let [role_high, role_low, flags, _, _, _, _, _, ..] = self.control[..] else { return Err(Error::Malformed) };
        if id == 0 {
            return Err(Error::Malformed);
        }
        let keep = flags & 1 != 0;
        match self.current {
            None => {}
            // 5.5: the other may be tried again on a connection of its own.
            Some(current) if current.id != id => return self.refuse(id, CANT_MPX_CONN, keep),
            // 3.3: an id is used again once its request has ended, so the front server has the answer, and we are
            // about to learn that it was sent.
            Some(Current { phase: Phase::Done, .. }) => self.overtaken += 1,
            Some(_) => return Err(Error::Malformed),
        }
        self.current = None;
        if u16::from_be_bytes([role_high, role_low]) != 1 {
            return self.refuse(id, UNKNOWN_ROLE, keep);
        }
        self.params.clear();
        self.current = Some(Current { id, keep, phase: Phase::Params });
        Ok(Event::More)
    }

    fn end_params<'a>(&mut self) -> Result<Event<'a>, Error> {
        for pair in self.params() {
            pair?;
        }
        self.set_phase(Phase::Stdin);
        Ok(Event::Params)
    }

    fn refuse<'a>(&mut self, id: u16, protocol_status: u8, keep: bool) -> Result<Event<'a>, Error> {
        append(&mut self.reply, &end_request(id, 0, protocol_status))?;
        self.reply_keeps = keep;
        Ok(Event::Reply)
    }

    /// RFC 6585 5.
    fn refuse_params<'a>(&mut self, id: u16) -> Result<Event<'a>, Error> {
        const ANSWER: &[u8] = b"Status: 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n";
        let keep = self.current.is_some_and(|current| current.keep);
        self.current = None;
        self.params.clear();
        append(&mut self.reply, &header(STDOUT, id, ANSWER.len() as u16))?;
        append(&mut self.reply, ANSWER)?;
        append(&mut self.reply, &header(STDOUT, id, 0))?;
        self.refuse(id, REQUEST_COMPLETE, keep)
    }

    fn abort<'a>(&mut self, id: u16) -> Result<Event<'a>, Error> {
        match self.current {
            Some(Current { id: current, keep, phase: Phase::Params }) if current == id => {
                // Nobody has heard of it yet.
                self.current = None;
                self.refuse(id, REQUEST_COMPLETE, keep)
            }
            Some(Current { id: current, .. }) if current == id => Ok(Event::Abort),
            _ => Ok(Event::More),
        }
    }

    /// 4.1: those of the values asked for that are known.
    fn tell_values<'a>(&mut self) -> Result<Event<'a>, Error> {
        let values = [
            (&b"FCGI_MAX_CONNS"[..], self.limits.connections),
            (b"FCGI_MAX_REQS", self.limits.requests),
            (b"FCGI_MPXS_CONNS", 0),
        ];
        let mut content = Vec::new();
        // Asked for twice, told once: the answer has to fit into one record.
        let mut told = [false; 3];
        for pair in Pairs::new(&self.control) {
            let (name, _) = pair?;
            let Some(index) = values.iter().position(|(known, _)| *known == name) else { continue };
            if std::mem::replace(&mut told[index], true) {
                continue;
            }
            let mut digits = [0; 20];
            let mut number = Buffer::new(&mut digits);
            number.decimal(u64::from(values[index].1));
            if let Some((bytes, length)) = lengths(name.len(), number.written().len()) {
                append(&mut content, &bytes[..length])?;
                append(&mut content, name)?;
                append(&mut content, number.written())?;
            }
        }
        append(&mut self.reply, &header(GET_VALUES_RESULT, 0, content.len() as u16))?;
        append(&mut self.reply, &content)?;
        self.reply_keeps = true;
        Ok(Event::Reply)
    }
}

/// The first `count` bytes of `rest`, or all of them.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(count.min(rest.len()));
    *rest = left;
    taken
}

fn append(place: &mut Vec<u8>, bytes: &[u8]) -> Result<(), OutOfMemory> {
    let count = place.len() + bytes.len();
    try_grow(place, count)?;
    place.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { params: 1000, connections: 10, requests: 10 };

    /// An event that owns what it is about.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Params(u16, bool, Vec<u8>),
        Stdin(u16, Vec<u8>),
        StdinEnd(u16),
        Abort(u16),
        Reply(Vec<u8>, bool),
        Malformed,
    }

    /// Feeds `stream` in pieces, and ends a request when its content has come, or was aborted. Pieces of content are put
    /// together.
    fn parse(stream: &[u8], mut cut: impl FnMut() -> usize) -> Vec<Seen> {
        let mut parser = Parser::new(LIMITS);
        let mut seen: Vec<Seen> = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(cut().clamp(1, rest.len()));
            let mut piece = piece;
            rest = later;
            while !piece.is_empty() {
                let (used, event) = match parser.feed(piece) {
                    Ok(fed) => fed,
                    Err(error) => {
                        assert_eq!(parser.feed(b"x"), Err(error));
                        assert_eq!(error, Error::Malformed);
                        seen.push(Seen::Malformed);
                        return seen;
                    }
                };
                assert!(used > 0 && used <= piece.len());
                let id = parser.current().map_or(0, |current| current.id);
                match event {
                    Event::More => assert_eq!(used, piece.len()),
                    Event::Params => {
                        let params = parser.params().flat_map(|pair| {
                            let (name, value) = pair.unwrap();
                            [name, b"=", value, b";"].concat()
                        });
                        let keep = parser.current().unwrap().keep;
                        seen.push(Seen::Params(id, keep, params.collect()));
                    }
                    Event::Stdin([]) => {
                        seen.push(Seen::StdinEnd(id));
                        parser.end();
                    }
                    Event::Stdin(content) => match seen.last_mut() {
                        Some(Seen::Stdin(_, before)) => before.extend(content),
                        _ => seen.push(Seen::Stdin(id, content.to_vec())),
                    },
                    Event::Abort => {
                        seen.push(Seen::Abort(id));
                        parser.end();
                    }
                    Event::Reply => {
                        let (reply, keep) = parser.reply();
                        seen.push(Seen::Reply(reply.to_vec(), keep));
                    }
                }
                piece = &piece[used..];
            }
        }
        seen
    }

    fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
        let mut record = header(kind, id, content.len() as u16).to_vec();
        record[6] = padding;
        record.extend(content);
        record.extend(vec![0xee; usize::from(padding)]);
        record
    }

    fn begin(id: u16, role: u8, flags: u8) -> Vec<u8> {
        record(BEGIN_REQUEST, id, &[0, role, flags, 0, 0, 0, 0, 0], 0)
    }

    fn params(id: u16) -> Vec<u8> {
        [record(PARAMS, id, b"\x01\x02Aab\x01\x00B", 3), record(PARAMS, id, b"", 0)].concat()
    }

    fn whole(stream: &[u8]) -> Vec<Seen> {
        parse(stream, || usize::MAX)
    }

    fn request(id: u16, flags: u8, content: &[u8]) -> Vec<u8> {
        let mut stream = [begin(id, 1, flags), params(id)].concat();
        for piece in content.chunks(5) {
            stream.extend(record(STDIN, id, piece, 1));
        }
        stream.extend(record(STDIN, id, b"", 0));
        stream
    }

    fn seen_request(id: u16, keep: bool, content: &[u8]) -> Vec<Seen> {
        let mut seen = vec![Seen::Params(id, keep, b"A=ab;B=;".to_vec())];
        if !content.is_empty() {
            seen.push(Seen::Stdin(id, content.to_vec()));
        }
        seen.push(Seen::StdinEnd(id));
        seen
    }

    #[test]
    fn requests_one_after_the_other() {
        let stream = [request(1, 1, b"hello world"), request(1, 1, b""), request(7, 0, b"x")].concat();
        let seen = [seen_request(1, true, b"hello world"), seen_request(1, true, b""), seen_request(7, false, b"x")];
        assert_eq!(whole(&stream), seen.concat());
        for length in 1..stream.len() {
            assert_eq!(parse(&stream, || length), seen.concat(), "{length} at a time");
        }
        for cut in 1..stream.len() {
            let mut first = true;
            let two = || if std::mem::take(&mut first) { cut } else { usize::MAX };
            assert_eq!(parse(&stream, two), seen.concat(), "cut at {cut}");
        }
    }

    #[test]
    fn a_second_request_at_the_same_time_is_refused() {
        let stream =
            [begin(1, 1, 1), params(1), begin(2, 1, 0), params(2), record(STDIN, 2, b"", 0), record(STDIN, 1, b"", 0)];
        assert_eq!(
            whole(&stream.concat()),
            [
                Seen::Params(1, true, b"A=ab;B=;".to_vec()),
                // The connection stays, because of the first.
                Seen::Reply(end_request(2, 0, CANT_MPX_CONN).to_vec(), true),
                Seen::StdinEnd(1),
            ]
        );
    }

    #[test]
    fn nothing_is_made_of_no_bytes() {
        let stream = [request(1, 1, b"some content"), record(GET_VALUES, 0, b"", 0), request(1, 1, b"")].concat();
        for cut in 0..stream.len() {
            let mut parser = Parser::new(LIMITS);
            let mut rest = &stream[..cut];
            while !rest.is_empty() {
                let (used, event) = parser.feed(rest).unwrap();
                rest = &rest[used..];
                let before = matches!(event, Event::Reply).then(|| parser.reply().0.to_vec());
                assert_eq!(parser.feed(b""), Ok((0, Event::More)), "{cut}");
                assert!(before.is_none_or(|before| before == parser.reply().0));
                if event == Event::Stdin(b"") {
                    parser.end();
                }
            }
        }
    }

    #[test]
    fn the_next_request_may_overtake_the_news_that_the_last_was_answered() {
        let mut parser = Parser::new(LIMITS);
        let stream = [request(1, 1, b""), request(1, 0, b"x")].concat();
        let mut events = Vec::new();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (used, event) = parser.feed(rest).unwrap();
            rest = &rest[used..];
            if event != Event::More {
                events.push((event, parser.current().unwrap().keep));
            }
            if event == Event::Stdin(b"x") {
                parser.end(); // of the first
            }
        }
        assert_eq!(
            events,
            [
                (Event::Params, true),
                (Event::Stdin(b""), true),
                (Event::Params, false),
                (Event::Stdin(b"x"), false),
                (Event::Stdin(b""), false),
            ]
        );
        assert!(parser.current().is_some());
        parser.end();
        assert!(parser.current().is_none());
    }

    #[test]
    fn other_roles_are_refused() {
        for role in [0, 2, 3, 255] {
            for flags in [0, 1] {
                let stream = [begin(1, role, flags), params(1), record(STDIN, 1, b"x", 0), request(1, 1, b"")].concat();
                let refused = Seen::Reply(end_request(1, 0, UNKNOWN_ROLE).to_vec(), flags == 1);
                assert_eq!(whole(&stream), [vec![refused], seen_request(1, true, b"")].concat());
            }
        }
    }

    #[test]
    fn an_abort_ends_what_has_begun() {
        let abort = record(ABORT_REQUEST, 1, b"", 5);
        let early = [begin(1, 1, 1), abort.clone(), request(1, 1, b"")].concat();
        let ended = Seen::Reply(end_request(1, 0, REQUEST_COMPLETE).to_vec(), true);
        assert_eq!(whole(&early), [vec![ended], seen_request(1, true, b"")].concat());
        let late = [begin(1, 1, 1), params(1), record(STDIN, 1, b"abc", 0), abort.clone(), request(1, 1, b"")].concat();
        let seen = [
            vec![Seen::Params(1, true, b"A=ab;B=;".to_vec()), Seen::Stdin(1, b"abc".to_vec()), Seen::Abort(1)],
            seen_request(1, true, b""),
        ];
        assert_eq!(whole(&late), seen.concat());
        // Of a request that is over, or that is not there.
        assert_eq!(whole(&[request(1, 1, b""), abort].concat()), seen_request(1, true, b""));
    }

    #[test]
    fn management_records_are_answered() {
        let ask = |names: &[&[u8]]| {
            let mut content = Vec::new();
            for name in names {
                content.extend([name.len() as u8, 0]);
                content.extend(*name);
            }
            whole(&record(GET_VALUES, 0, &content, 2))
        };
        let answer = |content: &[u8]| vec![Seen::Reply(record(GET_VALUES_RESULT, 0, content, 0), true)];
        assert_eq!(ask(&[b"FCGI_MAX_CONNS"]), answer(b"\x0e\x02FCGI_MAX_CONNS10"));
        assert_eq!(ask(&[b"X", b"FCGI_MPXS_CONNS"]), answer(b"\x0f\x01FCGI_MPXS_CONNS0"));
        assert_eq!(ask(&[b"FCGI_MAX_REQS", b"FCGI_MAX_REQS"]), answer(b"\x0d\x02FCGI_MAX_REQS10"));
        assert_eq!(ask(&[]), answer(b""));
        assert_eq!(whole(&record(GET_VALUES, 0, b"\x7f", 0)), [Seen::Malformed]);
        for content in [&b""[..], b"content"] {
            let unknown = record(UNKNOWN_TYPE, 0, &[77, 0, 0, 0, 0, 0, 0, 0], 0);
            assert_eq!(whole(&record(77, 0, content, 3)), [Seen::Reply(unknown, true)]);
        }
        // In the middle of a request.
        let stream = [begin(1, 1, 0), record(77, 0, b"", 0), params(1), record(STDIN, 1, b"", 0)].concat();
        assert_eq!(whole(&stream)[1..], seen_request(1, false, b""));
        // With an id it is nobody's business.
        assert_eq!(whole(&record(77, 5, b"x", 0)), []);
    }

    #[test]
    fn too_many_parameters_are_a_431() {
        let many = [&b"\x01\x80\x00\x03\x20A"[..], &[b'x'; 800]].concat();
        let fits = [begin(1, 1, 0), record(PARAMS, 1, &many, 0), record(PARAMS, 1, b"", 0)].concat();
        assert!(matches!(whole(&fits)[..], [Seen::Params(..)]));
        let stream = [begin(1, 1, 1), record(PARAMS, 1, &many, 0), record(PARAMS, 1, &many, 0), params(1)].concat();
        let seen = whole(&[stream, record(STDIN, 1, b"x", 0), request(1, 0, b"")].concat());
        let [Seen::Reply(reply, true), rest @ ..] = &seen[..] else { panic!("{seen:?}") };
        assert!(reply[8..].starts_with(b"Status: 431 "));
        assert!(reply.ends_with(&[header(STDOUT, 1, 0).to_vec(), end_request(1, 0, 0).to_vec()].concat()));
        assert_eq!(rest, seen_request(1, false, b""));
    }

    #[test]
    fn what_breaks_the_rules_ends_the_connection() {
        let bad_version = [2, 1, 0, 1, 0, 8, 0, 0];
        for (name, stream) in [
            ("another version", bad_version.to_vec()),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("begin without content", record(BEGIN_REQUEST, 1, b"", 0)),
            ("begin with too little", record(BEGIN_REQUEST, 1, &[0, 1, 0, 0, 0, 0, 0], 0)),
            ("the id of management records", begin(0, 1, 0)),
            ("the same id twice", [begin(1, 1, 0), begin(1, 1, 0)].concat()),
            ("content before the parameters end", [begin(1, 1, 0), record(STDIN, 1, b"x", 0)].concat()),
            ("its end before the parameters end", [begin(1, 1, 0), record(STDIN, 1, b"", 0)].concat()),
            (
                "a pair past the end",
                [begin(1, 1, 0), record(PARAMS, 1, b"\x05\x05a", 0), record(PARAMS, 1, b"", 0)].concat(),
            ),
        ] {
            assert_eq!(whole(&stream).last(), Some(&Seen::Malformed), "{name}");
        }
    }

    /// A pair's length, and what follows.
    fn naive_length(stream: &[u8]) -> Option<(usize, &[u8])> {
        match stream {
            [long @ 128..=255, a, b, c, rest @ ..] => {
                let number = [*a, *b, *c].iter().fold(usize::from(long & 127), |n, byte| n << 8 | usize::from(*byte));
                Some((number, rest))
            }
            [short @ 0..=127, rest @ ..] => Some((usize::from(*short), rest)),
            _ => None,
        }
    }

    fn naive_pairs(stream: &[u8]) -> Option<Vec<u8>> {
        if stream.is_empty() {
            return Some(Vec::new());
        }
        let (name, rest) = naive_length(stream)?;
        let (value, rest) = naive_length(rest)?;
        let pair = [rest.get(..name)?, b"=", rest.get(name..name + value)?, b";"].concat();
        Some([pair, naive_pairs(&rest[name + value..])?].concat())
    }

    /// The same, in the simplest way, of whole records: kind, id, content.
    fn naive(records: &[(u8, u16, Vec<u8>)]) -> Vec<Seen> {
        let mut seen: Vec<Seen> = Vec::new();
        let mut active: Option<(u16, bool)> = None;
        let mut params: Option<Vec<u8>> = None; // Some: they have not ended.
        for (kind, id, content) in records {
            let is_active = active.is_some_and(|(active, _)| active == *id);
            let keep = active.is_some_and(|(_, keep)| keep);
            match kind {
                1 => match content[..] {
                    [high, role, flags, _, _, _, _, _, ..] if *id > 0 && !is_active => {
                        let wanted = flags % 2 == 1;
                        let refused = |status: u8, keep| {
                            Seen::Reply(
                                [&[1, 3][..], &id.to_be_bytes(), &[0, 8, 0, 0, 0, 0, 0, 0, status, 0, 0, 0]].concat(),
                                keep,
                            )
                        };
                        if active.is_some() {
                            seen.push(refused(1, true));
                        } else if (high, role) != (0, 1) {
                            seen.push(refused(3, wanted));
                        } else {
                            (active, params) = (Some((*id, wanted)), Some(Vec::new()));
                        }
                    }
                    _ => return [seen, vec![Seen::Malformed]].concat(),
                },
                2 if is_active && params.is_some() => {
                    seen.push(Seen::Reply(end_request(*id, 0, 0).to_vec(), keep));
                    (active, params) = (None, None);
                }
                2 if is_active => {
                    seen.push(Seen::Abort(*id));
                    active = None;
                }
                4 if is_active && params.is_some() => {
                    let all = [params.take().unwrap(), content.clone()].concat();
                    if !content.is_empty() && all.len() <= LIMITS.params {
                        params = Some(all);
                    } else if !content.is_empty() {
                        let answer = b"Status: 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n";
                        let reply =
                            [record(6, *id, answer, 0), record(6, *id, b"", 0), end_request(*id, 0, 0).to_vec()];
                        seen.push(Seen::Reply(reply.concat(), keep));
                        active = None;
                    } else if let Some(pairs) = naive_pairs(&all) {
                        seen.push(Seen::Params(*id, keep, pairs));
                    } else {
                        return [seen, vec![Seen::Malformed]].concat();
                    }
                }
                5 if is_active && params.is_some() => return [seen, vec![Seen::Malformed]].concat(),
                5 if is_active && content.is_empty() => {
                    seen.push(Seen::StdinEnd(*id));
                    active = None;
                }
                5 if is_active => match seen.last_mut() {
                    Some(Seen::Stdin(_, before)) => before.extend(content),
                    _ => seen.push(Seen::Stdin(*id, content.clone())),
                },
                9 if *id == 0 => {
                    let Some(asked) = naive_pairs(content) else { return [seen, vec![Seen::Malformed]].concat() };
                    let asked = String::from_utf8_lossy(&asked).into_owned();
                    let mut told = Vec::new();
                    let mut names: Vec<&str> = asked.split(';').map(|pair| pair.split('=').next().unwrap()).collect();
                    let mut known = Vec::new();
                    names.retain(|name| {
                        let first = !known.contains(name);
                        known.push(name);
                        first
                    });
                    for name in names {
                        let value: &[u8] = match name {
                            "FCGI_MAX_CONNS" | "FCGI_MAX_REQS" => b"10",
                            "FCGI_MPXS_CONNS" => b"0",
                            _ => continue,
                        };
                        told.extend([&[name.len() as u8, value.len() as u8], name.as_bytes(), value].concat());
                    }
                    seen.push(Seen::Reply(record(10, 0, &told, 0), true));
                }
                kind if *id == 0 && !(1..=11).contains(kind) => {
                    seen.push(Seen::Reply(record(11, 0, &[*kind, 0, 0, 0, 0, 0, 0, 0], 0), true))
                }
                _ => {}
            }
        }
        seen
    }

    /// Records as they might come, in an order that makes sense more often than not.
    fn records() -> impl Strategy<Value = Vec<(u8, u16, Vec<u8>)>> {
        let id = prop_oneof![8 => Just(1u16), 2 => Just(2), 1 => Just(0), 1 => any::<u16>()];
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        let pairs = prop_oneof![
            4 => Just(b"\x01\x02Aab\x01\x00B".to_vec()),
            1 => Just([&b"\x80\x00\x00\x01\x84\x00\x00\x01"[..], b"x"].concat()),
            1 => Just(vec![0; 700]),
            1 => bytes.clone(),
        ];
        let names = prop_oneof![
            Just(b"\x0e\x00FCGI_MAX_CONNS\x0f\x00FCGI_MPXS_CONNS".to_vec()),
            Just(b"\x0d\x00FCGI_MAX_REQS\x0d\x01FCGI_MAX_REQSx".to_vec()),
        ];
        let one = prop_oneof![
            6 => (Just(1u8), id.clone(), any::<u8>().prop_map(|b| vec![0, 1 + u8::from(b > 220), b % 4, 0, 0, 0, 0, 0])),
            6 => (Just(4u8), id.clone(), pairs),
            6 => (Just(4u8), id.clone(), Just(Vec::new())),
            6 => (Just(5u8), id.clone(), bytes.clone()),
            4 => (Just(5u8), id.clone(), Just(Vec::new())),
            1 => (Just(2u8), id.clone(), Just(Vec::new())),
            1 => (Just(9u8), Just(0u16), names),
            2 => (any::<u8>(), id, bytes),
        ];
        prop::collection::vec(one, 0..30)
    }

    fn random(seed: u64) -> impl FnMut() -> usize {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 58) as usize
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_parser(records in records(), padding in any::<u8>(), seed in any::<u64>()) {
            let stream: Vec<u8> =
                records.iter().flat_map(|(kind, id, content)| record(*kind, *id, content, padding)).collect();
            let expected = naive(&records);
            prop_assert_eq!(&whole(&stream), &expected);
            prop_assert_eq!(&parse(&stream, random(seed)), &expected);
        }

        #[test]
        fn cuts_change_nothing_whatever_the_bytes(
            records in records(), spoilt in prop::collection::vec((any::<usize>(), any::<u8>()), 0..5), seed in any::<u64>(),
        ) {
            let mut stream: Vec<u8> =
                records.iter().flat_map(|(kind, id, content)| record(*kind, *id, content, 1)).collect();
            for (at, byte) in spoilt {
                let at = at % stream.len().max(1);
                if let Some(place) = stream.get_mut(at) {
                    *place = byte;
                }
            }
            prop_assert_eq!(parse(&stream, random(seed)), whole(&stream));
        }

        #[test]
        fn any_bytes(stream in prop::collection::vec(any::<u8>(), 0..200), seed in any::<u64>()) {
            prop_assert_eq!(parse(&stream, random(seed)), whole(&stream));
        }
    }
}
