//! The rows of `tests/cases/*.toml` (their README says what a row is), and what judges an answer by one.

use std::path::Path;
use toml::Value;

/// One rule, with its defaults filled in and its placeholders replaced.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub method: Vec<u8>,
    pub http10: bool,
    /// Field lines in order.
    pub request: Vec<(Vec<u8>, Vec<u8>)>,
    pub length: u64,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub etag: String,
    pub now: i64,
    pub content_type: Vec<u8>,
    /// Some are out of range.
    pub status: u32,
    pub headers: Vec<AppHeader>,
    pub max_ranges: usize,
    pub close: bool,
    pub body: bool,
    pub expect: Expect,
}

/// A field of the application's.
#[derive(Debug, Clone)]
pub struct AppHeader {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
    pub rule: String,
    pub frozen: bool,
}

/// What a row says of the answer.
#[derive(Debug, Clone, Default)]
pub struct Expect {
    pub status: Option<u16>,
    pub error: Option<String>,
    ranges: Option<Vec<(u64, u64)>>,
    content_range: Option<String>,
    content_length: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
    fields: Vec<(String, String)>,
    absent: Vec<String>,
    keep_alive: Option<bool>,
}

/// An answer, decided on values.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub keep_alive: bool,
    pub content_length: u64,
    pub body_length: u64,
    /// First and last byte of each.
    pub ranges: Vec<(u64, u64)>,
    /// Status line, fields, empty line.
    pub head: Vec<u8>,
}

/// U+0000 to U+00FF are the bytes of those numbers.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("rows use U+0000 to U+00FF")).collect()
}

/// The tag that this file has to have: written here a second time, with the standard library's formatter.
fn entity_tag(mtime: i64, mtime_nsec: u32, length: u64) -> String {
    let nanoseconds = i128::from(mtime) * 1_000_000_000 + i128::from(mtime_nsec);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    format!("\"{sign}{:x}-{length:x}\"", nanoseconds.unsigned_abs())
}

/// All rows, in the order of their files' names.
pub fn load() -> Vec<Row> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("tests/cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    let mut rows = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a file of rows");
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for case in table["case"].as_array().expect("case is an array") {
            rows.push(row(case.as_table().expect("a case is a table")));
        }
    }
    rows
}

fn row(case: &toml::Table) -> Row {
    let name = case["name"].as_str().expect("name").to_owned();
    let text = |key: &str, default: &str| case.get(key).map_or(default, |v| v.as_str().expect("a string")).to_owned();
    let int = |key: &str, default: i64| case.get(key).map_or(default, |v| v.as_integer().expect("an integer"));
    let flag = |key: &str| case.get(key).is_some_and(|v| v.as_bool().expect("a boolean"));
    let now = int("now", 1_700_000_000);
    let file = |key: &str| case.get("file").and_then(|file| file.get(key));
    let (mtime, relative) = match file("mtime") {
        None => (784_111_777, false),
        Some(Value::String(word)) => match word.as_str() {
            "now" => (now, true),
            "future" => (now + 86_400, true),
            other => panic!("{name}: mtime {other}"),
        },
        Some(value) => (value.as_integer().expect("mtime"), false),
    };
    let default_nsec = if relative { 1 } else { 123_456_789 };
    let mtime_nsec = file("mtime_nsec").map_or(default_nsec, |v| v.as_integer().expect("mtime_nsec"));
    let mtime_nsec = u32::try_from(mtime_nsec).expect("mtime_nsec");
    let length = file("length").map_or(1000, |v| v.as_integer().expect("length")).unsigned_abs();
    let etag = entity_tag(mtime, mtime_nsec, length);
    let expand = |value: &str| latin1(&value.replace("{etag}", &etag).replace("{opaque}", etag.trim_matches('"')));
    let empty = Vec::new();
    let list = |key: &str| case.get(key).map_or(&empty, |v| v.as_array().expect("an array"));
    let cell = |line: &Value, i: usize| line[i].as_str().expect("a string").to_owned();
    let request = list("request").iter().map(|line| (latin1(&cell(line, 0)), expand(&cell(line, 1)))).collect();
    let headers = list("headers")
        .iter()
        .map(|line| {
            let (rule, frozen) = match cell(line, 2).split_once('+') {
                Some((rule, "frozen")) => (rule.to_owned(), true),
                Some(_) => panic!("{name}: bad rule"),
                None => (cell(line, 2), false),
            };
            AppHeader { name: latin1(&cell(line, 0)), value: latin1(&cell(line, 1)), rule, frozen }
        })
        .collect();
    Row {
        method: latin1(&text("method", "GET")),
        http10: int("version", 11) == 10,
        request,
        length,
        mtime,
        mtime_nsec,
        now,
        content_type: latin1(&text("content_type", "text/plain")),
        status: u32::try_from(int("status", 200)).expect("status"),
        headers,
        max_ranges: usize::try_from(int("max_ranges", 64)).expect("max_ranges"),
        close: flag("close"),
        body: flag("body"),
        expect: expect(case["expect"].as_table().expect("expect is a table")),
        etag,
        name,
    }
}

fn expect(table: &toml::Table) -> Expect {
    let text = |key: &str| table.get(key).map(|v| v.as_str().expect("a string").to_owned());
    let int = |key: &str| table.get(key).map(|v| v.as_integer().expect("an integer").unsigned_abs());
    let pairs = |key: &str| table.get(key).map(|v| v.as_array().expect("an array"));
    Expect {
        status: int("status").map(|status| u16::try_from(status).expect("a status")),
        error: text("error"),
        ranges: pairs("ranges").map(|ranges| {
            let end = |range: &Value, i: usize| range[i].as_integer().expect("an integer").unsigned_abs();
            ranges.iter().map(|range| (end(range, 0), end(range, 1))).collect()
        }),
        content_range: text("content_range"),
        content_length: int("content_length"),
        etag: text("etag"),
        last_modified: text("last_modified"),
        fields: pairs("fields").map_or_else(Vec::new, |fields| {
            let cell = |field: &Value, i: usize| field[i].as_str().expect("a string").to_owned();
            fields.iter().map(|field| (cell(field, 0), cell(field, 1))).collect()
        }),
        absent: pairs("absent").map_or_else(Vec::new, |names| {
            names.iter().map(|name| name.as_str().expect("a string").to_owned()).collect()
        }),
        keep_alive: table.get("keep_alive").map(|v| v.as_bool().expect("a boolean")),
    }
}

/// The fields of a head, after a check that it is one: a status line, lines of name and value, an empty line.
fn fields(head: &[u8], status: u16) -> Result<Vec<(String, String)>, String> {
    let text: String = head.iter().map(|b| char::from(*b)).collect();
    let lines = text.strip_suffix("\r\n\r\n").ok_or("no empty line at the end")?;
    let mut lines = lines.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    if !status_line.starts_with(&format!("HTTP/1.1 {status} ")) {
        return Err(format!("status line {status_line:?}"));
    }
    lines
        .map(|line| match line.split_once(": ") {
            Some((name, value)) if !line.contains(['\r', '\n', '\0']) => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("field line {line:?}")),
        })
        .collect()
}

/// Says what is wrong with `answer`.
pub fn judge(row: &Row, answer: &Answer) -> Result<(), String> {
    let want = &row.expect;
    let wanted_status = want.status.ok_or("an answer, where an error is expected")?;
    if answer.status != wanted_status {
        return Err(format!("status {}, not {wanted_status}", answer.status));
    }
    let fields = fields(&answer.head, answer.status)?;
    let values = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    };
    let one = |name: &str| -> Result<Option<&str>, String> {
        match values(name)[..] {
            [] => Ok(None),
            [value] => Ok(Some(value)),
            _ => Err(format!("{name} more than once")),
        }
    };
    let same = |name: &str, have: Option<&str>, want: Option<&str>| {
        if have == want { Ok(()) } else { Err(format!("{name} {have:?}, not {want:?}")) }
    };
    // With a status of the application's own nothing is decided: `ranges` then says what the body is.
    let decided = if row.status == 200 { want.ranges.as_deref().unwrap_or_default() } else { &[] };
    if decided != answer.ranges {
        return Err(format!("ranges {:?}, not {decided:?}", answer.ranges));
    }
    if let Some(value) = &want.content_range {
        same("Content-Range", one("Content-Range")?, Some(value))?;
    }
    let announced = one("Content-Length")?.map(|v| v.parse::<u64>().map_err(|_| format!("Content-Length {v:?}")));
    let announced = announced.transpose()?;
    if let Some(length) = want.content_length
        && announced != Some(length)
    {
        return Err(format!("Content-Length {announced:?}, not {length}"));
    }
    // What was decided is what the head says and what will be sent.
    if announced.unwrap_or(0) != answer.content_length {
        return Err(format!("decided on {} bytes, announced {announced:?}", answer.content_length));
    }
    let has_body = row.method != b"HEAD";
    if answer.body_length != if has_body { answer.content_length } else { 0 } {
        return Err(format!("body of {} bytes", answer.body_length));
    }
    let etag = one("ETag")?;
    match want.etag.as_deref() {
        None => {}
        Some("strong") => same("ETag", etag, Some(&row.etag))?,
        Some("weak") => same("ETag", etag, Some(&format!("W/{}", row.etag)))?,
        Some("none") => same("ETag", etag, None)?,
        Some(value) => same("ETag", etag, Some(value))?,
    }
    match want.last_modified.as_deref() {
        None => {}
        Some("date") => same("Last-Modified", one("Last-Modified")?, one("Date")?)?,
        Some("none") => same("Last-Modified", one("Last-Modified")?, None)?,
        Some(value) => same("Last-Modified", one("Last-Modified")?, Some(value))?,
    }
    for (name, value) in &want.fields {
        let times = values(name).iter().filter(|v| v == &value).count();
        if times != 1 {
            return Err(format!("{name}: {value} is there {times} times, in {:?}", values(name)));
        }
    }
    for name in &want.absent {
        same(name, values(name).first().copied(), None)?;
    }
    if let Some(keep_alive) = want.keep_alive
        && keep_alive != answer.keep_alive
    {
        return Err(format!("keep_alive {}", answer.keep_alive));
    }
    if answer.keep_alive == values("Connection").contains(&"close") {
        return Err(format!("keep_alive {}, Connection {:?}", answer.keep_alive, values("Connection")));
    }
    Ok(())
}

/// Runs `answer` on every row, and fails with all that went wrong.
pub fn run(mut answer: impl FnMut(&Row) -> Result<Answer, String>) {
    let rows = load();
    assert!(rows.len() >= 200, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let verdict = match (answer(row), &row.expect.error) {
            (Ok(answer), _) => judge(row, &answer),
            (Err(error), Some(wanted)) if error == *wanted => Ok(()),
            (Err(error), wanted) => Err(format!("error {error}, not {wanted:?}")),
        };
        if let Err(why) = verdict {
            wrong.push(format!("{}: {why}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
