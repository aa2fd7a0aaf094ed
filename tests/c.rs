//! The C programs in `tests/c`, built as a C user would build them, against the libraries of this very build.
//!
//! Each runs four ways: linked with `libsendgate.a`, with `libsendgate.so`, with the sanitizers, and under
//! Valgrind. Those that need no more than the first version's header has are built with that one too. A program prints what failed and exits non-zero.

mod rows;

use rows::{Answer, Row};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How a program is built and run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Static,
    Shared,
    Sanitized,
    Valgrind,
    /// Compiled with the first version's header, and linked with today's `libsendgate.so`.
    FirstHeader,
}

const WARNINGS: &[&str] =
    &["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wundef", "-Wstrict-prototypes", "-Werror"];
/// The system libraries that a Rust static library needs (`rustc --print native-static-libs`).
const SYSTEM_LIBRARIES: &[&str] = &["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put this test's own build of the library: beside the test, not `target/debug`, which may be older.
fn artefacts() -> PathBuf {
    let exe = std::env::current_exe().expect("current_exe");
    let dir = exe.parent().expect("a directory").to_path_buf();
    for name in ["libsendgate.a", "libsendgate.so"] {
        assert!(dir.join(name).is_file(), "{name} is not in {}", dir.display());
    }
    dir
}

/// A directory of its own for each run, removed with everything in it.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("create a temporary directory");
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // A program that ends early breaks the pipe; what it printed tells why.
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input));
        child.wait_with_output().expect("wait")
    })
}

#[track_caller]
fn succeed(command: &mut Command, input: &[u8]) -> String {
    let output = run(command, input);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

fn available(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Says why something does not run, past libtest's capture.
fn skip(reason: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {reason}\n").as_bytes());
}

fn compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

/// What a program is linked with beside the library.
fn link_flags(program: &str) -> &'static [&'static str] {
    match program {
        // It takes the place of libc functions, for the shared library too.
        "given_head" | "sender_disk" | "sender_faults" | "receive_faults" | "stream_faults" | "headers" => {
            &["-rdynamic", "-ldl"]
        }
        "tls" => &["-lssl", "-lcrypto"],
        _ => &[],
    }
}

/// Why a program can't be built here.
fn lacks(program: &str) -> Option<&'static str> {
    let openssl = || {
        let mut cc = Command::new(compiler());
        cc.args(["-E", "-x", "c", "-"]);
        run(&mut cc, b"#include <openssl/ssl.h>\n").status.success()
    };
    (program == "tls" && !openssl()).then_some("OpenSSL's headers are not installed (Debian: libssl-dev)")
}

fn build(program: &str, mode: Mode, dir: &Path) -> PathBuf {
    let sources = root().join("tests/c");
    let binary = dir.join(program);
    let mut cc = Command::new(compiler());
    cc.args(["-std=c99", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer"]).args(WARNINGS);
    let header = if mode == Mode::FirstHeader { "tests/abi/first" } else { "include" };
    cc.arg("-I").arg(root().join(header)).arg("-o").arg(&binary);
    let source = sources.join(program).with_extension("c");
    let text = std::fs::read_to_string(&source).expect("UTF-8");
    if text.contains("#include \"flight.h\"") {
        cc.arg(sources.join("flight.c"));
    }
    cc.arg(source).arg(sources.join("check.c"));
    match mode {
        Mode::Shared | Mode::FirstHeader => {
            // The name that the library gives itself, which the loader looks for.
            let soname = dir.join("libsendgate.so.0");
            std::os::unix::fs::symlink(artefacts().join("libsendgate.so"), &soname).expect("symlink");
            cc.arg(&soname).arg("-lpthread");
        }
        Mode::Static | Mode::Sanitized | Mode::Valgrind => {
            cc.arg(artefacts().join("libsendgate.a")).args(SYSTEM_LIBRARIES);
        }
    }
    if mode == Mode::Sanitized {
        cc.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    }
    cc.args(link_flags(program));
    succeed(&mut cc, b"");
    if mode == Mode::Sanitized {
        let symbols = succeed(Command::new("nm").arg(&binary), b"");
        for wanted in ["__asan_init", "__ubsan_handle"] {
            assert!(symbols.contains(wanted), "{program} was built without {wanted}");
        }
    }
    if matches!(mode, Mode::Shared | Mode::FirstHeader) {
        let needed = succeed(Command::new("readelf").arg("-d").arg(&binary), b"");
        assert!(needed.contains("[libsendgate.so.0]"), "{program} does not ask for libsendgate.so.0:\n{needed}");
    }
    binary
}

/// Build and run a program; what it printed, or `None` where that can't be done here.
fn program(name: &str, mode: Mode, input: &[u8]) -> Option<String> {
    if mode == Mode::Valgrind && !available("valgrind") {
        skip(&format!("{name} under Valgrind: valgrind is not installed"));
        return None;
    }
    if let Some(reason) = lacks(name) {
        skip(&format!("{name}: {reason}"));
        return None;
    }
    let dir = TempDir::new(&format!("{name}-{mode:?}"));
    let binary = build(name, mode, &dir.0);
    let work = dir.0.join("work");
    std::fs::create_dir(&work).expect("create the working directory");
    let mut command = if mode == Mode::Valgrind {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--show-leak-kinds=definite,indirect"]);
        valgrind.args(["--errors-for-leak-kinds=definite,indirect", "--track-fds=no"]);
        valgrind.arg(&binary);
        valgrind.env("SENDGATE_TEST_SLOW", "1");
        valgrind
    } else {
        Command::new(&binary)
    };
    command.current_dir(&work).env("LD_LIBRARY_PATH", &dir.0);
    let stdout = succeed(&mut command, input);
    // A program that ends before its last check must not pass.
    assert!(stdout.contains(" checks passed, 0 failed"), "{name} did not reach its end:\n{stdout}");
    for line in stdout.lines().filter_map(|line| line.strip_prefix("skipped: ")) {
        skip(&format!("{name}: {line}"));
    }
    Some(stdout)
}

/// A test for each mode, which it is given.
macro_rules! in_every_mode {
    ($test:ident) => {
        #[test]
        fn linked_statically() {
            $test(Mode::Static);
        }
        #[test]
        fn linked_dynamically() {
            $test(Mode::Shared);
        }
        #[test]
        fn under_sanitizers() {
            $test(Mode::Sanitized);
        }
        #[test]
        fn under_valgrind() {
            $test(Mode::Valgrind);
        }
    };
}

macro_rules! programs {
    ($($name:ident)*) => { $(mod $name {
        use super::{Mode, program};

        fn run(mode: Mode) {
            program(stringify!($name), mode, b"");
        }
        in_every_mode!(run);
    })* };
}

programs! {
    header respond transfer split structs head given_head simple open fastcgi tls receive receive_faults
    sender_disk sender sender_host sender_peers sender_threads sender_faults sender_many stream stream_faults
}

/// All functions of the first version's header, called by programs that know nothing else: structs are as long as they
/// were then.
mod with_the_first_header {
    use super::*;

    macro_rules! programs {
        ($($name:ident)*) => { $(#[test]
        fn $name() {
            program(stringify!($name), Mode::FirstHeader, b"");
        })* };
    }
    programs! { head open respond simple split transfer }

    #[test]
    fn cases() {
        cases::every_row(Mode::FirstHeader);
    }

    #[test]
    fn all_functions() {
        let header = std::fs::read_to_string(root().join("tests/abi/first/sendgate.h")).expect("UTF-8");
        let mut sources = String::new();
        for name in ["cases", "check", "head", "open", "respond", "simple", "split", "transfer"] {
            sources += &std::fs::read_to_string(root().join("tests/c").join(name).with_extension("c")).expect("UTF-8");
        }
        let mut functions = 0;
        for (at, _) in header.match_indices("sendgate_") {
            let name: String = header[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if header[at + name.len()..].starts_with('(') && name != "sendgate_status" {
                assert!(sources.contains(&format!("{name}(")), "{name} isn't called");
                functions += 1;
            }
        }
        assert!(functions > 15, "{functions}");
    }
}

/// The header by itself is clean in every C and C++ that it is for, with each compiler that is installed.
#[test]
fn header_compiles_as_every_c_and_cxx() {
    let standards =
        [("c", "c99"), ("c", "c11"), ("c", "c17"), ("c", "c2x"), ("c++", "c++11"), ("c++", "c++17"), ("c++", "c++20")];
    let mut compiled = 0;
    for cc in ["gcc", "clang"] {
        if !available(cc) {
            skip(&format!("the header with {cc}: {cc} is not installed"));
            continue;
        }
        for (language, standard) in standards {
            let mut command = Command::new(cc);
            command.args(["-fsyntax-only", "-x", language, &format!("-std={standard}"), "-Wpadded"]);
            // "-Wstrict-prototypes" is for C only.
            command.args(WARNINGS.iter().filter(|warning| language == "c" || **warning != "-Wstrict-prototypes"));
            command.arg("-I").arg(root().join("include")).arg(root().join("tests/c/header.c"));
            succeed(&mut command, b"");
            compiled += 1;
        }
    }
    assert!(compiled > 0, "neither gcc nor clang is installed");
}

/// A C++ program links: the declarations have C linkage.
#[test]
fn header_links_from_cxx() {
    let Some(cxx) = ["c++", "g++", "clang++"].into_iter().find(|cxx| available(cxx)) else {
        return skip("linking from C++: no C++ compiler is installed");
    };
    let dir = TempDir::new("cxx");
    let binary = dir.0.join("header");
    let mut command = Command::new(cxx);
    command.args(["-x", "c++", "-std=c++11"]).arg(root().join("tests/c/header.c")).args(["-x", "none"]);
    command.arg("-I").arg(root().join("include")).arg("-o").arg(&binary);
    succeed(command.arg(artefacts().join("libsendgate.a")).args(SYSTEM_LIBRARIES), b"");
    succeed(&mut Command::new(&binary), b"");
}

/// Bytes as the programs read them.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The rows of `tests/cases` through `tests/c/cases.c`, which says what the lines look like.
mod cases {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
        digits.map(|two| u8::from_str_radix(two, 16).expect("hexadecimal")).collect()
    }

    fn input(rows: &[Row]) -> String {
        let mut text = String::new();
        for row in rows {
            let _ = writeln!(text, "row {}\nmethod {}", row.name, hex(&row.method));
            for (name, value) in &row.request {
                let _ = writeln!(text, "field {} {}", hex(name), hex(value));
            }
            for header in &row.headers {
                let rule = ["default", "override", "append", "remove"].iter().position(|rule| *rule == header.rule);
                let rule = rule.expect("a rule") + if header.frozen { 16 } else { 0 };
                let _ = writeln!(text, "header {rule} {} {}", hex(&header.name), hex(&header.value));
            }
            for (key, number) in [
                ("version", if row.http10 { 10 } else { 11 }),
                ("body", row.body.into()),
                ("length", i64::try_from(row.length).expect("a length")),
                ("mtime", row.mtime),
                ("nsec", row.mtime_nsec.into()),
                ("now", row.now),
                ("status", row.status.into()),
                ("max_ranges", i64::try_from(row.max_ranges).expect("a number of ranges")),
                ("close", row.close.into()),
            ] {
                let _ = writeln!(text, "{key} {number}");
            }
            let _ = writeln!(text, "etag {}\ntype {}\nend", hex(row.etag.as_bytes()), hex(&row.content_type));
        }
        text
    }

    /// The answers by the rows' names.
    fn answers(output: &str) -> HashMap<String, Result<Answer, String>> {
        let mut answers = HashMap::new();
        let (mut name, mut answer, mut error) = (String::new(), Answer::default(), None);
        for line in output.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |i: usize| words[i].parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
            match words[0] {
                "row" => (name, answer, error) = (words[1].to_owned(), Answer::default(), None),
                "error" => error = words[1].strip_prefix("SENDGATE_ERR_").map(str::to_owned),
                "answer" => {
                    answer.status = u16::try_from(number(1)).expect("a status");
                    answer.keep_alive = number(2) == 1;
                    (answer.content_length, answer.body_length) = (number(3), number(4));
                }
                "range" => answer.ranges.push((number(1), number(1) + number(2) - 1)),
                "head" => answer.head = unhex(words[1]),
                "end" => {
                    let found = error.take().map_or_else(|| Ok(std::mem::take(&mut answer)), Err);
                    answers.insert(std::mem::take(&mut name), found);
                }
                _ => assert!(line.ends_with("0 failed"), "{line}"),
            }
        }
        answers
    }

    pub fn every_row(mode: Mode) {
        let Some(output) = program("cases", mode, input(&rows::load()).as_bytes()) else { return };
        let mut answers = answers(&output);
        rows::run(|row| answers.remove(&row.name).unwrap_or_else(|| Err("no answer".to_owned())));
    }

    in_every_mode!(every_row);
}

/// The rows of `tests/header_lists.toml` through `tests/c/headers.c`, which says what the lines look like.
mod headers {
    use super::*;

    /// A character up to U+00FF is a byte.
    fn word(value: &toml::Value) -> String {
        let text = value.as_str().expect("a string");
        hex(&text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect::<Vec<_>>())
    }

    /// What the program reads, and how many rows that are.
    fn input() -> (String, usize) {
        let rows: toml::Table = include_str!("header_lists.toml").parse().expect("TOML");
        let cases = rows["case"].as_array().expect("an array");
        let mut text = String::new();
        for case in cases {
            let _ = writeln!(text, "case {}", case["name"].as_str().expect("a name"));
            for step in case["steps"].as_array().expect("steps") {
                let step = step.as_array().expect("a step");
                let key = step[0].as_str().expect("what to do");
                let arguments = if matches!(key, "set" | "add") { 2 } else { 1 };
                let status = match step.get(arguments + 1).map(|error| error.as_str().expect("an error")) {
                    None => "SENDGATE_OK",
                    Some("frozen") => "SENDGATE_ERR_FROZEN",
                    Some("field") => "SENDGATE_ERR_FIELD",
                    Some(error) => panic!("{error}"),
                };
                let words: Vec<String> = step[1..=arguments].iter().map(word).collect();
                let _ = writeln!(text, "{key} {} {status}", words.join(" "));
            }
            for line in case["lines"].as_array().expect("lines") {
                let _ = writeln!(text, "line {} {}", word(&line[0]), word(&line[1]));
            }
            for key in ["frozen", "open"] {
                for name in case.get(key).and_then(toml::Value::as_array).into_iter().flatten() {
                    let _ = writeln!(text, "{key} {}", word(name));
                }
            }
            text.push_str("end\n");
        }
        (text, cases.len())
    }

    fn every_row(mode: Mode) {
        let (text, rows) = input();
        let Some(output) = program("headers", mode, text.as_bytes()) else { return };
        assert!(rows > 10 && output.contains(&format!("{rows} rows\n")), "{output}");
    }

    in_every_mode!(every_row);
}
