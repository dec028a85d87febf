//! Where Consul's ACL token comes from.
//!
//! Decides between the sources and reads none of them: a file's token is read by whoever watches it,
//! so that a new one is used without a restart.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Secret;
use crate::args::ConsulArgs;
use crate::config::TokenSource;
use crate::report::{REDACTED, Sourced};

use super::draft::{Draft, shown};
use super::nomad;

const TOKEN: &str = "CONSUL_HTTP_TOKEN";
const TOKEN_FILE: &str = "CONSUL_HTTP_TOKEN_FILE";

/// Nomad's files in the secrets folder: of a Connect service, and of a task with a `consul` block.
const NOMAD_TOKENS: [&str; 2] = ["si_token", "consul_token"];

/// The first of: `--auth-method`, `--token`, `--token-file`, `CONSUL_HTTP_TOKEN`,
/// `CONSUL_HTTP_TOKEN_FILE`, Nomad's files.
pub(super) fn source(args: ConsulArgs, draft: &mut Draft<'_>) -> Option<TokenSource> {
    if args.auth_method.is_none() && args.jwt_file.is_some() {
        draft.missing(
            "--jwt-file is given without --auth-method, where it would be exchanged".into(),
            "give --auth-method NAME too, or leave --jwt-file away".into(),
        );
    }
    let mut offers = Vec::new();
    let literal = args.token.filter(|token| !token.is_empty());
    if let Some(token) = literal {
        offers.push(Sourced::new(TokenSource::Literal(token), "--token"));
        draft.note("--token is seen by everyone who may list processes; --token-file is not".into());
    }
    if let Some(file) = draft.flag("--token-file", args.token_file) {
        offers.push(one_file(file));
    }
    if args.auth_method.is_some() {
        if let Some(offer) = offers.first() {
            draft.conflict(
                format!("--auth-method and {} each give a token", offer.from),
                "give one of them".into(),
            );
        }
        return login(args.auth_method, args.jwt_file, draft);
    }
    let arguments = offers.len();
    if let Some(token) = draft.var(TOKEN) {
        let secret = Secret::new(token.value);
        if !secret.is_empty() {
            offers.push(Sourced::new(TokenSource::Literal(secret), TOKEN));
        }
    }
    if let Some(file) = draft.var(TOKEN_FILE) {
        offers.push(one_file(Sourced::new(PathBuf::from(file.value), TOKEN_FILE)));
    }
    let mut offers = offers.into_iter();
    let Some(chosen) = offers.next() else {
        return Some(nomad_files(draft));
    };
    let passed_over: Vec<String> = offers.map(|offer| offer.from).collect();
    if !passed_over.is_empty() {
        let why = if arguments == 1 {
            "arguments win"
        } else {
            "a token wins over a file"
        };
        draft.note(format!(
            "the token of {} is used, not that of {}: {why}",
            chosen.from,
            passed_over.join(", ")
        ));
    }
    if let TokenSource::Files(files) = &chosen.value {
        for file in files {
            draft.must_exist(&Sourced::new(file.clone(), chosen.from.clone()));
        }
    }
    put(draft, &chosen);
    Some(chosen.value)
}

fn one_file(file: Sourced<PathBuf>) -> Sourced<TokenSource> {
    Sourced::new(TokenSource::Files(vec![file.value]), file.from)
}

/// Both files, there or not: Nomad may write one later, and writes a new token in place. Nothing
/// outside of Nomad.
pub(super) fn nomad_paths(draft: &mut Draft<'_>) -> Option<Sourced<Vec<PathBuf>>> {
    let folder = draft.var(nomad::SECRETS_DIR)?;
    let folder_path = Path::new(&folder.value);
    let files = NOMAD_TOKENS.iter().map(|name| folder_path.join(name));
    Some(Sourced::new(files.collect(), folder.from))
}

fn nomad_files(draft: &mut Draft<'_>) -> TokenSource {
    let chosen = match nomad_paths(draft) {
        Some(files) => Sourced::new(TokenSource::Files(files.value), files.from),
        None => Sourced::new(TokenSource::None, "none given"),
    };
    put(draft, &chosen);
    chosen.value
}

fn login(
    auth_method: Option<String>,
    jwt_file: Option<PathBuf>,
    draft: &mut Draft<'_>,
) -> Option<TokenSource> {
    let auth_method = draft.flag("--auth-method", auth_method);
    let jwt_file = match jwt_file {
        Some(_) => {
            let file = draft.flag("--jwt-file", jwt_file);
            if let Some(file) = &file {
                draft.must_exist(file);
            }
            file
        }
        None => nomad_jwt(draft),
    };
    for variable in [TOKEN, TOKEN_FILE] {
        if draft.is_set(variable) {
            draft.note(format!("--auth-method is given: {variable} is not used"));
        }
    }
    let (auth_method, jwt_file) = (auth_method?, jwt_file?);
    let from = format!("--auth-method, with the JWT of {}", jwt_file.from);
    let source = TokenSource::Login {
        auth_method: auth_method.value,
        jwt_file: jwt_file.value,
    };
    let chosen = Sourced::new(source, from);
    put(draft, &chosen);
    Some(chosen.value)
}

/// The one `nomad_*.jwt` of the secrets folder.
fn nomad_jwt(draft: &mut Draft<'_>) -> Option<Sourced<PathBuf>> {
    let how = "give --jwt-file FILE";
    if !draft.is_set(nomad::SECRETS_DIR) {
        draft.missing(
            format!(
                "--auth-method is given, but no JWT: no --jwt-file, and {} is not set",
                nomad::SECRETS_DIR
            ),
            how.into(),
        );
        return None;
    }
    let folder = draft.var(nomad::SECRETS_DIR)?;
    let names = match draft.files.list_dir(Path::new(&folder.value)) {
        Ok(names) => names,
        Err(error) => {
            draft.missing(
                format!(
                    "--auth-method is given, but {}={:?} cannot be listed for a JWT: {error}",
                    folder.from, folder.value
                ),
                how.into(),
            );
            return None;
        }
    };
    let is_jwt = |name: &String| name.starts_with("nomad_") && name.ends_with(".jwt");
    let mut jwts: Vec<String> = names.into_iter().filter(is_jwt).collect();
    jwts.sort();
    match jwts.as_slice() {
        [one] => Some(Sourced::new(Path::new(&folder.value).join(one), folder.from)),
        [] => {
            draft.missing(
                format!(
                    "--auth-method is given, but {}={:?} has no nomad_*.jwt",
                    folder.from, folder.value
                ),
                format!("{how}, or give the sidecar_task an identity block with file = true"),
            );
            None
        }
        several => {
            draft.conflict(
                format!(
                    "--auth-method is given, and {} has several JWTs: {}",
                    folder.from,
                    several.join(", ")
                ),
                format!("{how}, to say which"),
            );
            None
        }
    }
}

fn put(draft: &mut Draft<'_>, chosen: &Sourced<TokenSource>) {
    let paths = |files: &[PathBuf]| -> Value { files.iter().map(|file| shown(file)).collect() };
    let mut entry = match &chosen.value {
        TokenSource::None => json!({ "value": null }),
        TokenSource::Literal(_) => json!({ "value": REDACTED }),
        TokenSource::Files(files) => json!({ "value": REDACTED, "files": paths(files) }),
        TokenSource::Login {
            auth_method,
            jwt_file,
        } => json!({
            "value": REDACTED, "auth_method": auth_method, "jwt_file": shown(jwt_file),
        }),
    };
    entry["from"] = chosen.from.clone().into();
    draft.report.values.push(("consul.token", entry));
}
