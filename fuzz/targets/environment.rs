//! Arguments, variables and files in any shape: `load` returns, says what is wrong, and no secret
//! that it was given is in anything that it says.
//!
//! A line each: `> argument`, `< path=content` for a file, everything else `NAME=VALUE`, so that a
//! recorded environment is a seed as it is. Wherever a secret may stand the target puts one of its own.

#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use attache_bootstrap::env::{MapFiles, OsEnv, env_from_os};
use attache_bootstrap::{Command, Failure, LiveFacts, exit, load};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;

/// Long enough that no input holds it by chance.
const SECRET: &str = "s3cr3t-7f1d6c0b-never-printed";

#[derive(Default)]
struct Input {
    args: Vec<OsString>,
    env: OsEnv,
    files: MapFiles,
}

fuzz_target!(|data: &[u8]| -> Corpus {
    if data
        .windows(SECRET.len())
        .any(|window| window == SECRET.as_bytes())
    {
        return Corpus::Reject;
    }
    let input = read(data);
    let given = said(&input, None);
    // `run` and `bootstrap` read alike.
    let other = match input.args.first().and_then(|verb| verb.to_str()) {
        Some("run") => "bootstrap",
        Some("bootstrap") => "run",
        _ => return Corpus::Keep,
    };
    if given.1 != Value::Null {
        assert_eq!(given, said(&input, Some(other)));
    }
    Corpus::Keep
});

/// The exit code and the report, after checking both; `verb` stands in place of the first argument.
fn said(input: &Input, verb: Option<&str>) -> (u8, Value) {
    let mut args = vec![OsString::from("attache")];
    args.extend(verb.map(OsString::from));
    args.extend(input.args.iter().skip(usize::from(verb.is_some())).cloned());
    let result = load(args, &input.env, &input.files);
    let (code, report) = match &result {
        Ok(Command::Run(loaded) | Command::Bootstrap(loaded)) => {
            assert!(
                loaded.report.problems().is_empty(),
                "it runs in spite of a problem"
            );
            let live = loaded.report.to_json(Some(&live()));
            secret_is_not_in(&live.to_string());
            (exit::OK, loaded.report.to_json(None))
        }
        Ok(_) => (exit::OK, Value::Null),
        Err(failure @ Failure::Config(rejected)) => {
            assert!(!rejected.problems.is_empty(), "it is refused without a reason");
            for problem in &rejected.problems {
                assert!(!problem.what.is_empty() && !problem.fix.is_empty(), "{problem:?}");
            }
            (failure.exit_code(), rejected.report.to_json(None))
        }
        Err(failure) => (failure.exit_code(), Value::Null),
    };
    assert!([exit::OK, exit::USAGE, exit::CONFIG].contains(&code), "{code}");
    secret_is_not_in(&report.to_string());
    secret_is_not_in(&format!("{result:?}"));
    if let Err(failure) = &result {
        secret_is_not_in(&failure.to_string());
    }
    (code, report)
}

fn secret_is_not_in(text: &str) {
    assert!(!text.contains(SECRET), "the secret is printed: {text}");
}

fn live() -> LiveFacts {
    LiveFacts {
        agent: "http://127.0.0.1:8500".into(),
        proxy_id: "web-sidecar-proxy".into(),
        public_listener: Some(([0, 0, 0, 0], 20_000).into()),
        upstreams: Vec::new(),
    }
}

fn read(data: &[u8]) -> Input {
    let mut input = Input::default();
    let mut vars = Vec::new();
    let mut before: &[u8] = b"";
    for line in data.split(|byte| *byte == b'\n') {
        if let Some(argument) = line.strip_prefix(b"> ") {
            let with_secret = match before {
                // Whatever it is, clap takes it for the text.
                b"--config-yaml" => with_secret_text(argument),
                // clap takes what begins like one for a flag, and complains of the one before.
                b"--token" if !argument.starts_with(b"-") => SECRET.into(),
                _ => with_secret_argument(argument),
            };
            before = if before == b"--config-yaml" { b"" } else { argument };
            input.args.push(OsString::from_vec(with_secret));
        } else if let Some(file) = line.strip_prefix(b"< ") {
            let (path, content) = halves(file);
            let path = PathBuf::from(OsString::from_vec(path.to_vec()));
            let content = with_secret_content(&path, &String::from_utf8_lossy(content));
            input.files = input.files.with(path, content);
        } else if !line.is_empty() {
            let (name, value) = halves(line);
            let value = with_secret_value(name, value);
            vars.push((OsString::from_vec(name.to_vec()), OsString::from_vec(value)));
        }
    }
    input.env = env_from_os(vars);
    input
}

fn halves(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| *byte == b'=') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, b""),
    }
}

fn with_secret_argument(argument: &[u8]) -> Vec<u8> {
    let (flag, value) = halves(argument);
    match flag {
        b"--token" if flag.len() < argument.len() => [b"--token=", SECRET.as_bytes()].concat(),
        // A bootstrap's text, whether it can be read or not.
        b"--config-yaml" if flag.len() < argument.len() => {
            [b"--config-yaml=", &with_secret_text(value)[..]].concat()
        }
        b"--http-addr" | b"--consul" => {
            let glue: &[u8] = if flag.len() < argument.len() { b"=" } else { b"" };
            [flag, glue, &with_password(value)].concat()
        }
        _ => argument.to_vec(),
    }
}

/// In the place of each @, else behind everything.
fn with_secret_text(text: &[u8]) -> Vec<u8> {
    if !text.contains(&b'@') {
        return [text, SECRET.as_bytes()].concat();
    }
    let pieces: Vec<&[u8]> = text.split(|byte| *byte == b'@').collect();
    pieces.join(SECRET.as_bytes())
}

fn with_secret_value(name: &[u8], value: &[u8]) -> Vec<u8> {
    match name {
        // What else is in it stays, so that blanks and bytes that are no text are tried too.
        b"CONSUL_HTTP_TOKEN" | b"CONSUL_HTTP_AUTH" => [SECRET.as_bytes(), value].concat(),
        b"CONSUL_HTTP_ADDR" => with_password(value),
        _ => value.to_vec(),
    }
}

/// `user@host` becomes `user<secret>@host`; in a socket's path an @ is a letter like others.
fn with_password(address: &[u8]) -> Vec<u8> {
    let is_socket = address
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"unix://"));
    if is_socket {
        return address.to_vec();
    }
    match address.iter().position(|byte| *byte == b'@') {
        Some(at) => [&address[..at], SECRET.as_bytes(), &address[at..]].concat(),
        None => address.to_vec(),
    }
}

/// Every file may hold a secret; of Nomad's file for Envoy only `node.id` is no secret.
fn with_secret_content(path: &std::path::Path, content: &str) -> String {
    if !path.ends_with("envoy_bootstrap.json") {
        return format!("{SECRET}{content}");
    }
    match serde_json::from_str::<Value>(content) {
        Ok(mut file @ Value::Object(_)) => {
            file["x-consul-token"] = SECRET.into();
            file.to_string()
        }
        _ => format!("{content}{SECRET}"),
    }
}
