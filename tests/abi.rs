//! The C ABI as other programs see it: the committed header, the exported symbols, the codes and their texts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;

// Called as C calls them; the crate is named so that its symbols are linked.
use sendgate as _;
unsafe extern "C" {
    safe fn sendgate_version() -> u32;
    safe fn sendgate_features() -> u64;
    safe fn sendgate_status_name(status: i32) -> *const c_char;
    safe fn sendgate_status_message(status: i32) -> *const c_char;
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `include/sendgate.h` is what cbindgen makes of `src/ffi`. `make header` sets SENDGATE_WRITE_HEADER to write it.
#[test]
fn header_is_current() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let bindings =
        cbindgen::Builder::new().with_crate(root()).with_config(config).generate().expect("cbindgen reads src/ffi");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = root().join("include/sendgate.h");
    if std::env::var_os("SENDGATE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("write include/sendgate.h");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/sendgate.h is out of date: run `make header`");
}

/// The part of the header that cffi reads, without its comments.
fn declarations() -> String {
    let header = std::fs::read_to_string(root().join("include/sendgate.h")).expect("include/sendgate.h");
    let (_, rest) = header.split_once("/* cffi: begin").expect("the mark where cffi begins");
    let (_, rest) = rest.split_once("*/").expect("the end of that comment");
    let (part, _) = rest.split_once("/* cffi: end */").expect("the mark where cffi ends");
    let mut code = String::new();
    let mut rest = part;
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        (_, rest) = comment.split_once("*/").expect("a comment that ends");
    }
    code.push_str(rest);
    code
}

/// The `#define`s of the header: name and number.
fn constants() -> BTreeMap<String, i64> {
    let code = declarations();
    let defines = code.lines().filter_map(|line| line.strip_prefix("#define "));
    let constants: BTreeMap<_, _> = defines
        .map(|define| {
            let (name, value) = define.split_once(' ').unwrap_or_else(|| panic!("{define} has no value"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{define} is no plain decimal integer")))
        })
        .collect();
    assert!(constants.len() > 40, "only {} constants", constants.len());
    constants
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let code = declarations();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices('(') {
        let before = &code[..at];
        let start = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        // What comes before the parenthesis of a function pointer's type is its return type.
        if before[start..].starts_with("sendgate_") && !code[at..].starts_with("(*") {
            names.insert(before[start..].to_owned());
        }
    }
    names.remove("sendgate_status"); // of sendgate_write_fn and sendgate_read_fn
    names
}

/// cargo's own build of the shared library for this test, beside it.
fn shared_library() -> PathBuf {
    let exe = std::env::current_exe().expect("current_exe");
    let library = exe.parent().expect("a directory").join("libsendgate.so");
    assert!(library.is_file(), "{} is missing", library.display());
    library
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error} (binutils are needed)"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the shared library exports.
fn exported() -> BTreeSet<String> {
    // Some linkers export where sections begin and end.
    const OF_THE_LINKER: &[&str] = &["_init", "_fini", "__bss_start", "_edata", "_end"];
    output(Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()))
        .lines()
        .map(|line| line.split_whitespace().last().expect("a symbol").to_owned())
        .filter(|symbol| !OF_THE_LINKER.contains(&symbol.as_str()))
        .collect()
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|number| number.parse().unwrap_or_else(|_| panic!("version {version}"))).collect()
}

/// `tests/symbols.txt` is what there is: nothing goes away unnoticed, and nothing else gets out.
#[test]
fn exported_symbols_are_the_committed_list() {
    let list = std::fs::read_to_string(root().join("tests/symbols.txt")).expect("tests/symbols.txt");
    let mut committed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let (since, symbol) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}: version and symbol"));
        assert!(numbers(since) <= numbers(env!("CARGO_PKG_VERSION")), "{line}: a version yet to come");
        assert!(committed.insert(symbol.to_owned()), "{symbol} is there twice");
    }
    let exported = exported();
    let foreign: Vec<_> = exported.iter().filter(|symbol| !symbol.starts_with("sendgate_")).collect();
    assert!(foreign.is_empty(), "exported, and not ours: {foreign:?}");
    let gone: Vec<_> = committed.difference(&exported).collect();
    assert!(gone.is_empty(), "no longer exported, which breaks the ABI: {gone:?}");
    let new: Vec<_> = exported.difference(&committed).collect();
    assert!(new.is_empty(), "exported but not in tests/symbols.txt: {new:?}");
}

/// Every exported function can be called from C, and every declared one can be linked.
#[test]
fn header_declares_what_is_exported() {
    assert_eq!(declared(), exported());
}

/// What nothing calls from C isn't tested as what it is.
#[test]
fn every_function_is_called_from_c() {
    let mut sources = String::new();
    for entry in std::fs::read_dir(root().join("tests/c")).expect("tests/c") {
        sources += &std::fs::read_to_string(entry.expect("an entry").path()).expect("UTF-8");
    }
    let is_called = |name: &&String| {
        let call = format!("{name}(");
        let part_of_a_name = |before: &str| before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        sources.match_indices(&call).any(|(at, _)| !part_of_a_name(&sources[..at]))
    };
    let declared = declared();
    let uncalled: Vec<_> = declared.iter().filter(|name| !is_called(name)).collect();
    assert!(uncalled.is_empty(), "no program in tests/c calls {uncalled:?}");
}

/// The number in the SONAME changes when the ABI breaks, as the first number of the version does.
#[test]
fn soname() {
    let dynamic = output(Command::new("readelf").arg("-d").arg(shared_library()));
    let line = dynamic.lines().find(|line| line.contains("(SONAME)")).expect("a SONAME");
    let major = env!("CARGO_PKG_VERSION_MAJOR");
    assert!(line.ends_with(&format!("[libsendgate.so.{major}]")), "{line}");
}

/// What abidiff(1) says of this library, held against a dump of an older one; `None`: they are compatible.
fn abidiff(dump: &Path) -> Option<String> {
    let mut command = Command::new("abidiff");
    command.arg("--suppressions").arg(root().join("tests/abi/suppressions.ini")).arg("--no-added-syms");
    let output = command.arg(dump).arg(shared_library()).output().expect("abidiff runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then_some(said)
}

/// Functions, their parameters and the structs of the header, as they are in the library's debugging information: none
/// differs from any release's in `tests/abi`. `make abi-dump` enters a new one.
#[test]
fn abidiff_finds_nothing() {
    if Command::new("abidiff").arg("--version").output().is_err() {
        // Past libtest's capture.
        let reason = b"skipped: abidiff is not installed (Debian: apt-get install abigail-tools)\n";
        return std::io::Write::write_all(&mut std::io::stderr(), reason).expect("standard error");
    }
    let folder = root().join("tests/abi");
    if std::env::var_os("SENDGATE_WRITE_ABI").is_some() {
        let dump = folder.join(format!("libsendgate-{}.abi", env!("CARGO_PKG_VERSION")));
        let mut command = Command::new("abidw");
        command.args(["--no-show-locs", "--no-corpus-path", "--no-comp-dir-path", "--no-elf-needed"]);
        command.args(["--type-id-style", "hash", "--suppressions"]).arg(folder.join("suppressions.ini"));
        output(command.arg("--out-file").arg(dump).arg(shared_library()));
    }
    let entries = std::fs::read_dir(&folder).expect("tests/abi").map(|entry| entry.expect("an entry").path());
    let mut dumps: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "abi")).collect();
    dumps.sort();
    assert!(!dumps.is_empty(), "no dump in tests/abi");
    for dump in &dumps {
        assert_eq!(abidiff(dump), None, "{}", dump.display());
    }

    // What isn't compatible is seen; a struct that has grown at its end is, if it has a size.
    let dump = std::fs::read_to_string(&dumps[0]).expect("UTF-8");
    let sink = dump.find("<class-decl name='sendgate_sink'").expect("the struct");
    let end = sink + dump[sink..].find("</class-decl>").expect("its end");
    let member = |name: &str| {
        let at = sink + dump[sink..end].find(&format!("name='{name}'")).expect("a member");
        dump[..at].rfind("<data-member").expect("where it begins")
    };
    let compare = |changed: &str| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("abi-{}.abi", std::process::id()));
        std::fs::write(&file, changed).expect("write");
        let said = abidiff(&file);
        std::fs::remove_file(&file).expect("remove");
        said
    };
    let header = &dump[sink..member("size")];
    let shorter = header.replacen("'448'", "'384'", 1);
    assert_ne!(shorter, header, "sendgate_sink has another size: change this test too");
    let before = format!("{}{shorter}{}", &dump[..sink], &dump[member("size")..member("fcgi_request_id")]);
    assert_eq!(compare(&format!("{before}{}", &dump[end..])), None);
    let without = format!("{}{}", &dump[..member("user")], &dump[member("fd")..]);
    assert!(compare(&without).is_some_and(|said| said.contains("user")));
    let other_name = dump.replace("elf-symbol name='sendgate_open'", "elf-symbol name='sendgate_gone'");
    assert!(compare(&other_name).is_some_and(|said| said.contains("sendgate_gone")));
}

/// A text of the library's, as C sees it.
fn text(text: *const c_char) -> String {
    assert!(!text.is_null());
    // SAFETY: the header promises a static NUL-terminated string.
    unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8").to_owned()
}

fn is_status(name: &str) -> bool {
    ["OK", "WANT_WRITE", "WANT_READ", "YIELD", "EMPTY", "PENDING"].iter().any(|n| name == format!("SENDGATE_{n}"))
        || name.starts_with("SENDGATE_ERR_")
}

/// Every code has its own number, the sign of its kind, its name and a sentence.
#[test]
fn every_status_has_a_name_and_a_message() {
    let statuses: Vec<_> = constants().into_iter().filter(|(name, _)| is_status(name)).collect();
    assert!(statuses.len() >= 20, "only {} codes", statuses.len());
    let (mut numbers, mut messages) = (BTreeSet::new(), BTreeSet::new());
    for (name, number) in &statuses {
        let status = i32::try_from(*number).expect("a code of 32 bits");
        assert_eq!(status < 0, name.contains("_ERR_"), "{name} is {status}");
        assert!(numbers.insert(status), "{name}: {status} is taken");
        assert_eq!(&text(sendgate_status_name(status)), name);
        let message = text(sendgate_status_message(status));
        assert!(message.ends_with('.') && message.is_ascii(), "{name}: {message:?}");
        assert!(messages.insert(message.clone()), "{name}: {message:?} is another's");
    }
    for unknown in [i32::MIN, -1000, 1000, i32::MAX] {
        assert!(!statuses.iter().any(|(name, _)| *name == text(sendgate_status_name(unknown))), "{unknown}");
        assert!(!messages.contains(&text(sendgate_status_message(unknown))), "{unknown}");
    }
}

/// Cargo.toml, the header and the library agree.
#[test]
fn versions_agree() {
    let constants = constants();
    let of_header = ["MAJOR", "MINOR", "PATCH"].map(|part| constants[&format!("SENDGATE_VERSION_{part}")]);
    assert_eq!(of_header.map(|number| number.to_string()).join("."), env!("CARGO_PKG_VERSION"));
    let packed = of_header[0] << 16 | of_header[1] << 8 | of_header[2];
    assert_eq!(i64::from(sendgate_version()), packed);
    let sendfile = constants["SENDGATE_FEATURE_SENDFILE"].unsigned_abs();
    assert_eq!(sendgate_features() & sendfile != 0, cfg!(target_os = "linux"));
}

/// Between the marks are only constructs that cffi's parser takes, and types whose width does not move.
#[test]
fn header_suits_cffi() {
    const UNFIT: &str = "enum union inline static extern bool _Bool int unsigned short long float double \
                         off_t ssize_t time_t intptr_t uintptr_t __attribute__";
    let code = declarations();
    constants(); // panics on anything but NAME INTEGER
    for line in code.lines() {
        assert!(!line.starts_with('#') || line.starts_with("#define "), "{line}: cffi knows only #define");
        assert!(!line.contains("//") && !line.ends_with('\\'), "{line}");
        // A colon would be a bit-field, a brace after a parenthesis a function's body.
        assert!(!line.contains([':', '"', '[', '=']) && !line.contains(") {"), "{line}");
        for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            assert!(!UNFIT.split(' ').any(|unfit| unfit == word), "{line}: {word}");
        }
    }
}

/// A C header shares one space of names with its host. (What the library exports is a list of its own.)
#[test]
fn every_constant_has_the_prefix() {
    for name in constants().keys() {
        assert!(name.starts_with("SENDGATE_"), "{name}");
    }
}
