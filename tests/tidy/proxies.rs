//! The proxies of `contrib/` wait for as long as an answer may keep silent.

use hostler::proxy::{Rules, Upstream};

use super::tree::files;

/// The minutes that a file gives by this word, where it gives minutes.
fn minutes(text: &str, word: &str) -> Vec<u64> {
    let values = text.lines().filter_map(|line| line.trim().strip_prefix(word));
    values
        .filter_map(|value| value.trim().trim_end_matches(';').strip_suffix('m')?.parse().ok())
        .collect()
}

#[test]
fn proxies_of_contrib_outlast_the_longest_silence() {
    let silence = Rules::default().max_wait + Upstream::default().header_timeout;
    let all = files();
    for (path, word) in [
        ("contrib/nginx/hostler.conf", "proxy_read_timeout"),
        ("contrib/haproxy/haproxy.cfg", "timeout server"),
    ] {
        let text = &all.iter().find(|file| file.path == path).unwrap().text;
        let given = minutes(text, word);
        assert_eq!(given.len(), 1, "{path}: {given:?}");
        assert!(
            given[0] * 60 >= silence.as_secs(),
            "{path}: {given:?}, and silent for {silence:?}"
        );
        let ours = Upstream::default().header_timeout.as_secs() / 60;
        let said = text.contains(&format!("and the {ours}\n"));
        assert!(said, "{path} says another time than the {ours} minutes of an engine");
    }
}
