//! Finds the model in a form with files. PURE.
//!
//! Purpose: `multipart/form-data` (RFC 7578) names the model in a field, often after the file; this finds the fields `model`
//! and `stream` and proves that the form has one reading. Owner: `inference`. Invariants: the bytes go on unchanged, but for the part
//! with the model's name where the far side knows another; a field that counts and is given twice is refused; nothing but the fields'
//! heads and short values is looked at.

use std::ops::Range;

use bytes::Bytes;
use hyper::StatusCode;
use memchr::memmem;

use super::error::ApiError;
use super::peek::Peek;

/// RFC 2046's bound on a boundary.
const BOUNDARY_MAX: usize = 70;
/// The head of a part.
const PART_HEAD_MAX: usize = 4096;
/// Parts of one form.
const PARTS_MAX: usize = 128;
/// A value that is looked at.
const VALUE_MAX: usize = 1024;

fn bad(code: &'static str, param: Option<&'static str>, message: impl Into<String>) -> ApiError {
    let mut error = ApiError::new(StatusCode::BAD_REQUEST, code, message);
    error.param = param;
    error
}

fn malformed(why: &str) -> ApiError {
    bad("invalid_form", None, format!("the body is not a valid multipart/form-data form: {why}"))
}

/// What a form says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub peek: Peek,
    /// Where the part with the model's name is, its head included.
    pub model: Range<usize>,
}

/// The form with another part in the place of the one with the model's name. Its head goes, too: what it said about its content
/// (a length, a coding) need not be true of the new name. No delimiter can be in that: it would begin with a line end.
pub(super) fn renamed(body: &[u8], model: Range<usize>, name: &str) -> Bytes {
    let (before, after) = (body.get(..model.start), body.get(model.end..));
    let head = b"Content-Disposition: form-data; name=\"model\"\r\n\r\n";
    [before.unwrap_or_default(), head, name.as_bytes(), after.unwrap_or_default()].concat().into()
}

/// Looks into a form.
///
/// # Errors
/// Why it cannot be routed.
pub(super) fn peek(content_type: Option<&[u8]>, body: &[u8]) -> Result<Form, ApiError> {
    let content_type = content_type.and_then(|v| std::str::from_utf8(v).ok()).unwrap_or_default();
    let boundary = boundary(content_type).ok_or_else(|| {
        bad("invalid_form", None, "send the form as Content-Type: multipart/form-data; boundary=…")
    })?;
    let delimiter = format!("\r\n--{boundary}");
    let first = &delimiter.as_bytes()[2..];
    let mut rest = if body.starts_with(first) {
        &body[first.len()..]
    } else {
        return Err(malformed("it does not begin with its boundary"));
    };
    let finder = memmem::Finder::new(delimiter.as_bytes());
    let (mut model, mut stream) = (None, None);
    for _ in 0..PARTS_MAX {
        if let Some(end) = rest.strip_prefix(b"--") {
            if !end.is_empty() && end != b"\r\n" {
                return Err(malformed("something follows its end"));
            }
            let (model, range) = model.ok_or_else(|| {
                bad(
                    "missing_required_parameter",
                    Some("model"),
                    "the field \"model\" is missing; GET /v1/models lists what is configured",
                )
            })?;
            let stream = stream.is_some_and(|(value, _)| value == "true");
            return Ok(Form { peek: Peek { model, stream }, model: range });
        }
        let Some(part) = rest.strip_prefix(b"\r\n") else {
            return Err(malformed("a boundary is not followed by a line end"));
        };
        let head_end = memmem::find(&part[..part.len().min(PART_HEAD_MAX)], b"\r\n\r\n")
            .ok_or_else(|| malformed("a part has no head, or one that is too long"))?;
        let content = &part[head_end + 4..];
        let length = finder.find(content).ok_or_else(|| malformed("a part does not end"))?;
        let field = name(&part[..head_end])?;
        let slot = match field.as_str() {
            "model" => Some(("model", &mut model)),
            "stream" => Some(("stream", &mut stream)),
            _ => None,
        };
        if let Some((name, slot)) = slot {
            let value = content[..length.min(VALUE_MAX)].to_vec();
            let value = String::from_utf8(value).map_err(|_| malformed("a value is not UTF-8"))?;
            let range = body.len() - part.len()..body.len() - content.len() + length;
            if slot.replace((value, range)).is_some() {
                let message = format!("the field {name:?} is given more than once");
                return Err(bad("duplicate_parameter", Some(name), message));
            }
        }
        rest = &content[length + delimiter.len()..];
    }
    Err(malformed("it has too many parts"))
}

/// The boundary, if the type is a form's and the boundary one that needs no decoding.
fn boundary(content_type: &str) -> Option<&str> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut found = None;
    for parameter in parameters.split(';') {
        let (name, value) = parameter.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("boundary") {
            let value = value.trim();
            let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if found.replace(bare).is_some() {
                return None;
            }
        }
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b);
    found.filter(|b| (1..=BOUNDARY_MAX).contains(&b.len()) && b.bytes().all(ok))
}

/// The name of a part's field.
fn name(head: &[u8]) -> Result<String, ApiError> {
    let head = std::str::from_utf8(head).map_err(|_| malformed("a part's head is not UTF-8"))?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let mut found = None;
    for line in head.split("\r\n") {
        let (header, value) = line
            .split_once(':')
            .ok_or_else(|| malformed("a part's head has a line without a colon"))?;
        // Folded over two lines, with an end of a line that not all readers take for one, or with a space before the colon: to others it
        // says something else.
        if header.is_empty() || !header.bytes().all(token) || value.contains(['\r', '\n']) {
            return Err(malformed("a part's head has a line that is no header"));
        }
        if !header.eq_ignore_ascii_case("content-disposition") {
            continue;
        }
        if found.replace(value).is_some() {
            return Err(malformed("a part has two Content-Dispositions"));
        }
    }
    let value = found.ok_or_else(|| malformed("a part has no Content-Disposition"))?.trim();
    let parameters = value
        .split_once(';')
        .filter(|(kind, _)| kind.trim().eq_ignore_ascii_case("form-data"))
        .map(|(_, rest)| rest)
        .ok_or_else(|| malformed("a part is not form-data"))?;
    field_name(parameters).ok_or_else(|| malformed("a part has no plain name"))
}

/// `name="…"` of a disposition's parameters. A quoted text may hold anything but a quote, as browsers and clients write it
/// (`%22`); a backslash is refused because readers differ about it, and so is `name*`, which is another name to some. No file's name ends
/// with a backslash: to some it is the quote that does not end there.
fn field_name(mut rest: &str) -> Option<String> {
    let mut found: Option<String> = None;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return found;
        }
        let (key, after) = rest.split_once('=')?;
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                after.split_at(end)
            }
        };
        let key = key.trim();
        if (key.contains('*') && !key.eq_ignore_ascii_case("filename*")) || value.ends_with('\\') {
            return None;
        }
        if key.eq_ignore_ascii_case("name") {
            let plain = !value.contains(['\\', '\r', '\n']) && !value.is_empty();
            if !plain || found.replace(value.to_owned()).is_some() {
                return None;
            }
        }
        rest = left.trim_start();
        rest = match rest.strip_prefix(';') {
            Some(more) => more,
            None if rest.is_empty() => return found,
            None => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &[u8] = b"multipart/form-data; boundary=XX";

    fn part(name: &str, value: &str) -> String {
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    }

    const FILE: &str = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a;b=c.wav\"\r\n\
                        Content-Type: audio/wav\r\n\r\nRIFF\r\n--X\r\n\0\r\n";

    fn ask(body: &str) -> Result<Form, ApiError> {
        peek(Some(TYPE), body.as_bytes())
    }

    #[test]
    fn the_model_is_found_before_and_after_the_file() {
        for body in [
            format!("{}{FILE}--XX--\r\n", part("model", "whisper")),
            format!("{FILE}{}--XX--\r\n", part("model", "whisper")),
            format!("{FILE}{}--XX--", part("model", "whisper")),
        ] {
            let form = ask(&body).unwrap();
            assert_eq!(form.peek, Peek { model: "whisper".into(), stream: false }, "{body}");
            let other = renamed(body.as_bytes(), form.model, "org/big");
            assert_eq!(other, body.replace("\r\n\r\nwhisper\r\n", "\r\n\r\norg/big\r\n"), "{body}");
        }
        // What a part says about its own content does not outlive it.
        let wordy = "--XX\r\ncontent-length: 7\r\nContent-Disposition: form-data; name=model\r\n\
                    Content-Type: text/plain\r\n\r\nwhisper\r\n";
        let body = format!("{FILE}{wordy}--XX--\r\n");
        let other = renamed(body.as_bytes(), ask(&body).unwrap().model, "org/big");
        assert_eq!(other, format!("{FILE}{}--XX--\r\n", part("model", "org/big")));
        let stream = format!("{}{}--XX--\r\n", part("stream", "true"), part("model", "a"));
        assert!(ask(&stream).unwrap().peek.stream);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let model = part("model", "a");
        let code = |body: &str| ask(body).unwrap_err().code;
        assert_eq!(
            code(&format!("{model}{}--XX--\r\n", part("model", "b"))),
            "duplicate_parameter"
        );
        assert_eq!(code(&format!("{FILE}--XX--\r\n")), "missing_required_parameter");
        for body in [
            String::new(),
            model.clone(),
            format!("preamble\r\n{model}--XX--\r\n"),
            format!("{model}--XX--\r\nmore"),
            format!("{model}--XXY\r\n"),
            "--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na".into(),
            "--XX\r\n\r\na\r\n--XX--".into(),
            "--XX\r\nContent-Disposition: form-data; name=\"mo\\\"del\"\r\n\r\na\r\n--XX--".into(),
            "--XX\r\nContent-Disposition: form-data; name=model; name=file\r\n\r\na\r\n--XX--"
                .into(),
            "--XX\r\nContent-Disposition: attachment; name=\"model\"\r\n\r\na\r\n--XX--".into(),
        ] {
            assert_eq!(code(&body), "invalid_form", "{body:?}");
        }
        // Fields that have another name to Go or Python: beside the model's, which is routed by.
        let disposition = "Content-Disposition: form-data; name=\"x\"";
        for head in [
            "; name*=utf-8''model",
            "; name*0=model",
            "; Name*=utf-8''model",
            "; filename=\"a\\\"; y=\"; name=\"model\"",
            "\r\n ; name=\"model\"; y=\":\"",
            "\r\nX-A: b\nContent-Disposition: form-data; name=\"model\"",
            "\r\nX-A: b\rContent-Disposition: form-data; name=\"model\"",
            "\r\nContent-Disposition : form-data; name=\"model\"",
            "\r\n: form-data",
        ] {
            let body = format!("{model}--XX\r\n{disposition}{head}\r\n\r\nb\r\n--XX--\r\n");
            assert_eq!(code(&body), "invalid_form", "{body:?}");
        }
        let named = "; filename=\"a:b\\c\"; filename*=UTF-8''%e2%82%ac";
        let body = format!("{model}--XX\r\n{disposition}{named}\r\n\r\nb\r\n--XX--\r\n");
        assert_eq!(ask(&body).map(|form| form.peek.model), Ok("a".to_owned()));
    }

    #[test]
    fn the_type_must_be_a_forms() {
        let body = format!("{}--XX--", part("model", "a"));
        for good in [
            "multipart/form-data; boundary=\"XX\"",
            "Multipart/Form-Data; charset=utf-8; Boundary=XX",
        ] {
            assert!(peek(Some(good.as_bytes()), body.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=XX; boundary=YY",
            "multipart/mixed; boundary=XX",
            "multipart/form-data; boundary=\"X X\"",
        ] {
            assert!(peek(Some(bad.as_bytes()), body.as_bytes()).is_err(), "{bad}");
        }
        assert!(peek(None, body.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..400) {
            let _ = peek(Some(TYPE), &body);
            let whole = format!("{FILE}{}--XX--\r\n", part("model", "a"));
            let cut = cut.min(whole.len());
            let got = peek(Some(TYPE), &whole.as_bytes()[..cut]);
            prop_assert!(got.is_err() || cut + 2 >= whole.len());
        }

        #[test]
        fn any_file_is_skipped(file in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assume!(memmem::find(&file, b"\r\n--XX").is_none());
            let mut body = b"--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n".to_vec();
            body.extend_from_slice(&file);
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(part("model", "m").as_bytes());
            body.extend_from_slice(b"--XX--\r\n");
            let form = peek(Some(TYPE), &body).unwrap();
            prop_assert_eq!(&*form.peek.model, "m");
            let other = renamed(&body, form.model, "org/big");
            prop_assert_eq!(peek(Some(TYPE), &other).map(|f| f.peek.model), Ok("org/big".to_owned()));
        }
    }
}
