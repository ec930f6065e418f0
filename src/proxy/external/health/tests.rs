//! Answers and misses, reloads between them, and what readers see.

use super::*;
use crate::types::Origin;

fn name(name: &str) -> ModelName {
    name.parse().unwrap()
}

fn external(host: &str) -> Arc<External> {
    let origin = Origin { tls: false, host: host.into(), port: 8711, prefix: "/x".into() };
    let key = Some(hyper::header::HeaderValue::from_static("sk-far"));
    Arc::new(External { origin, key, health: "/v1/models".into() })
}

fn rules(models: &[(&str, &Arc<External>)]) -> Rules {
    let externals = models.iter().map(|(n, external)| (name(n), (*external).clone()));
    Rules {
        externals: externals.collect(),
        aliases: BTreeMap::from([(name("w"), name("well")), (name("m"), name("mine"))]),
        ..Rules::default()
    }
}

fn dead(why: &str) -> Health {
    Health::Ill(why.into())
}

fn ill(why: &str) -> Answer {
    Answer::Ill(why.into())
}

#[test]
fn what_readers_see_of_them() {
    let far = external("far");
    let rules = rules(&[("ill", &far), ("new", &far), ("well", &far)]);
    let since = Moment::from_secs(7);
    let healths = Healths::default();
    let found = |health| Known { health: Some((health, since)), ..Known::nothing(far.clone()) };
    healths.0.store(Arc::new(BTreeMap::from([
        (name("ill"), found(dead("dead"))),
        (name("well"), found(Health::Well)),
        (name("left"), found(Health::Well)),
    ])));
    let rows = healths.status(&rules);
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.name.as_str(), row.health, row.why.as_deref(), row.since))
        .collect();
    assert_eq!(
        seen,
        [
            ("ill", ExternalHealth::Unwell, Some("dead"), Some(since)),
            ("new", ExternalHealth::Unknown, None, None),
            ("well", ExternalHealth::Well, None, Some(since)),
        ]
    );
    assert_eq!((&*rows[2].url, &rows[2].aliases), ("http://far:8711/x", &vec![name("w")]));
    assert!(rows[2].answers_to("w") && rows[2].answers_to("well") && !rows[2].answers_to("m"));
    assert!(!serde_json::to_string(&rows).unwrap().contains("sk-far"));
}

#[test]
fn a_health_dates_from_its_first_answer() {
    let mut known = Known::nothing(external("far"));
    let mut after = |answers: &[Answer], at: u64| {
        for answer in answers {
            known.asked(&name("m"), answer.clone(), Moment::from_secs(at));
        }
        known.health.clone()
    };
    let (first, then) = (Moment::from_secs(7), Moment::from_secs(9));
    assert_eq!(after(&[Answer::Well], 7), Some((Health::Well, first)));
    assert_eq!(after(&[Answer::Well], 9), Some((Health::Well, first)));
    assert_eq!(after(&[ill("a"), ill("a"), ill("a")], 9), Some((dead("a"), then)));
    let other = after(&[ill("b")], 11);
    assert_eq!(other, Some((dead("b"), then)), "another reason is no other health");
    assert_eq!(after(&[Answer::Well], 12), Some((Health::Well, Moment::from_secs(12))));
}

/// A single miss is one long prompt, one lost packet, or one 429 of a cloud.
#[test]
fn a_few_misses_are_no_death_nor_are_more_while_it_answers() {
    let healths = Healths::default();
    let far = external("far");
    assert_eq!(healths.follow(&rules(&[("m", &far)])).len(), 1);
    let question = Question { name: name("m"), of: far.clone() };
    let asked = |answer| healths.asked(&question, answer, Moment::START);
    let grant = || grant(&healths, &name("m"), &far);
    for known in [false, true] {
        assert_eq!((asked(ill("a")), asked(ill("a"))), (Some(AGAIN), Some(AGAIN)));
        grant().unwrap();
        assert_eq!(healths.0.load()[&name("m")].health.is_some(), known);
        assert_eq!(asked(Answer::Well), Some(PERIOD));
    }
    let busy = grant().unwrap();
    for _ in 0..9 {
        busy.heard();
        assert_eq!(asked(ill("a")), Some(PERIOD));
    }
    // What refuses its clients does not live by that.
    let mut refused = grant().unwrap();
    refused.refuses();
    refused.heard();
    assert_eq!((asked(ill("a")), asked(ill("a"))), (Some(AGAIN), Some(AGAIN)));
    assert_eq!(asked(ill("a")), Some(PERIOD));
    assert_eq!(grant().unwrap_err().code, "external_unwell");
    // The last words of one that was granted before.
    busy.heard();
    assert_eq!(asked(ill("a")), Some(PERIOD));
    grant().unwrap();
}

/// It answers one thing at a time, or has few threads, and whole answers are one word in minutes.
#[test]
fn one_that_works_may_be_silent_for_as_long_as_an_answer_takes() {
    let healths = Healths::default();
    let far = external("far");
    healths.follow(&rules(&[("m", &far)]));
    let question = Question { name: name("m"), of: far.clone() };
    let asked = |answer, at| healths.asked(&question, answer, Moment::from_secs(at));
    let silent = || Answer::Silent("late".into());
    let grant = || grant(&healths, &name("m"), &far);
    let end = PATIENCE.as_secs();
    let busy = grant().unwrap();
    for at in (0..end).step_by(5) {
        assert_eq!(asked(silent(), at), Some(PERIOD));
        drop(grant().unwrap());
    }
    // It may have begun to hang with them.
    assert_eq!((asked(silent(), end), asked(silent(), end)), (Some(AGAIN), Some(AGAIN)));
    asked(silent(), end);
    assert_eq!(grant().unwrap_err().code, "external_unwell");
    asked(Answer::Well, end);
    assert_eq!(asked(silent(), end), Some(PERIOD), "from its beginning");
    // Whom nobody can reach works for nobody.
    for _ in 0..MISSES {
        grant().unwrap();
        asked(ill("refused"), end);
    }
    grant().unwrap_err();
    asked(Answer::Well, end);
    drop(busy);
    for _ in 0..MISSES {
        grant().unwrap();
        asked(silent(), end);
    }
    assert_eq!(grant().unwrap_err().code, "external_unwell", "it works for nobody");
}

#[test]
fn a_verdict_is_of_the_endpoint_that_was_asked() {
    let healths = Healths::default();
    let (old, other, new) = (external("old"), external("other"), external("new"));
    healths.follow(&rules(&[("m", &old), ("n", &other)]));
    let question = |n, of: &Arc<External>| Question { name: name(n), of: of.clone() };
    for asked in [question("m", &old), question("n", &other)] {
        for _ in 0..MISSES {
            healths.asked(&asked, ill("a"), Moment::START);
        }
    }
    let seen = |rules: &Rules| -> Vec<_> {
        healths.status(rules).into_iter().map(|row| row.health).collect()
    };
    // The same endpoint, read again, and another.
    let same = external("other");
    let rules = rules(&[("m", &new), ("n", &same)]);
    let want = [ExternalHealth::Unknown, ExternalHealth::Unwell];
    assert_eq!(seen(&rules), want, "before anybody has looked");
    grant(&healths, &name("m"), &new).unwrap();
    assert_eq!(grant(&healths, &name("n"), &same).unwrap_err().code, "external_unwell");
    let news = healths.follow(&rules);
    assert_eq!(news.len(), 1);
    assert_eq!((&news[0].0, &news[0].1), (&name("m"), &new));
    assert_eq!(seen(&rules), want);
    // An answer that is late by a reload, and one of who stays.
    assert_eq!(healths.asked(&question("m", &old), ill("a"), Moment::START), None);
    assert_eq!(healths.asked(&question("n", &other), Answer::Well, Moment::START), Some(PERIOD));
    assert_eq!(seen(&rules), [ExternalHealth::Unknown, ExternalHealth::Well]);
}
