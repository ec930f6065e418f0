//! Which jobs there may be, and which are remembered.

use super::*;

fn add(jobs: &Jobs, kind: Kind, model: &str) -> Result<u32, Code> {
    let model = (!model.is_empty()).then(|| model.parse().unwrap());
    jobs.add(kind, model, Moment::START).map(|record| record.id).map_err(|error| error.code)
}

/// `hostler load --timeout 50s big` every minute, which leaves a job behind each time that there is no room.
#[test]
fn whoever_asks_again_and_again_keeps_nobody_from_making_room() {
    let jobs = Jobs::default();
    for _ in 0..ALIKE_MAX {
        add(&jobs, Kind::Load, "big").unwrap();
    }
    assert_eq!(add(&jobs, Kind::Load, "big"), Err(Code::QueueFull));
    for other in [Kind::Measure, Kind::Wake, Kind::Unload, Kind::Sleep] {
        add(&jobs, other, "big").unwrap();
    }
    add(&jobs, Kind::UnloadAll, "").unwrap();
    let last = add(&jobs, Kind::Load, "small").unwrap();
    // The end of one makes room for one.
    jobs.end(1, State::Cancelled);
    assert_eq!(add(&jobs, Kind::Load, "big"), Ok(last + 1));
    assert_eq!(add(&jobs, Kind::Load, "big"), Err(Code::QueueFull));
}

#[test]
fn the_refusal_says_of_what_there_are_too_many() {
    let jobs = Jobs::default();
    let add = || jobs.add(Kind::UnloadAll, None, Moment::START);
    (0..ALIKE_MAX).for_each(|_| drop(add().unwrap()));
    let refused = add().unwrap_err().message;
    assert!(refused.ends_with("already that unload all models"), "{refused}");
}

#[test]
fn all_loads_together_are_bounded_and_leave_unloads_their_own_bound() {
    for (fills, others) in [(Kind::Load, Kind::Unload), (Kind::Unload, Kind::Load)] {
        let jobs = Jobs::default();
        for at in 0..RUNNING_MAX {
            add(&jobs, fills, &format!("m{}", at / ALIKE_MAX)).unwrap();
        }
        assert_eq!(add(&jobs, fills, "last"), Err(Code::QueueFull));
        add(&jobs, others, "last").unwrap();
    }
}

/// A load of a busy model may take longer than many others one after the other.
#[test]
fn whose_end_is_news_is_not_forgotten_for_it() {
    let jobs = Jobs::default();
    let long = add(&jobs, Kind::Load, "big").unwrap();
    let last = long + 1 + KEPT as u32;
    for id in long + 1..=last {
        assert_eq!(add(&jobs, Kind::Load, "small"), Ok(id));
        let forgotten = jobs.end(id, State::Done);
        assert_eq!(forgotten, if id == last { vec![long + 1] } else { vec![] }, "{id}");
    }
    assert_eq!(jobs.end(long, State::Done), [long + 2], "who ended first");
    assert_eq!(jobs.get(long).map(|job| job.state), Some(State::Done));
    assert_eq!(jobs.all().len(), KEPT);
}
