//! The sleep ladder from end to end: the production supervisor and vLLM's production adapter, with the stand-in engine behind
//! real sockets. Only podman and the driver are played: containers are tasks of this process, their memory is what the
//! stand-in claims.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod house;

use std::time::Duration;

use hostler::types::{Bytes, Phase};
use house::House;

/// Each model takes 13 of the device's 24 GiB, and 1 GiB asleep.
const TWO: [&str; 2] = ["a", "b"];

#[tokio::test]
async fn an_idle_model_falls_asleep_and_wakes_in_its_own_container() {
    let house = House::new(&TWO, &[], Bytes::gib(20));
    let lease = house.acquire("a").await;
    let first = lease.instance().clone();
    assert_eq!(house.held("a"), Bytes::gib(13));
    drop(lease);
    house.until("a", Phase::Asleep).await;
    assert_eq!(house.held("a"), Bytes::gib(1));
    let gpu = house.status().gpus[0].clone();
    assert_eq!(gpu.free.get(), Some(Bytes::gib(23)), "the rest may be promised");
    let lease = house.acquire("a").await;
    assert_eq!(*lease.instance(), first);
    assert_eq!(house.held("a"), Bytes::gib(13));
    let sleep = house.model("a").sleep.unwrap();
    assert_eq!((sleep.sleeps, sleep.wakes, sleep.wake_failures), (1, 1, 0));
    assert_eq!(house.launches(), 1);
    house.shutdown().await;
}

#[tokio::test]
async fn two_models_that_exclude_each_other_take_turns_without_loading_again() {
    // The one falls asleep before the other wakes, so the host has to have room for both.
    let house = House::new(&TWO, &[], Bytes::gib(26));
    for turn in 0..3 {
        for model in TWO {
            let _lease = house.acquire(model).await;
            assert_eq!(house.held(model), Bytes::gib(13), "turn {turn}");
        }
    }
    assert_eq!(house.launches(), 2);
    let sleep = |model| house.model(model).sleep.unwrap();
    assert_eq!((sleep("a").wakes, sleep("b").wakes), (2, 2));
    house.shutdown().await;
}

#[tokio::test]
async fn where_the_host_has_room_for_one_the_other_is_stopped() {
    // 13 GiB are charged for each: nothing says how large its weights are.
    let house = House::new(&TWO, &[], Bytes::gib(14));
    for model in ["a", "b", "a"] {
        drop(house.acquire(model).await);
    }
    // `b` had to go while `a` slept.
    assert_eq!(house.launches(), 2);
    house.until("b", Phase::Stopped).await;
    drop(house.acquire("b").await);
    assert_eq!(house.launches(), 3);
    house.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_wakes_as_another_is_replaced_before_anybody_is_served() {
    let house = House::new(&["a"], &[("FAKE_WAKE", "1=gibberish")], Bytes::gib(20));
    let lease = house.acquire("a").await;
    let first = lease.instance().clone();
    drop(lease);
    house.until("a", Phase::Asleep).await;
    let lease = house.acquire("a").await;
    assert_ne!(*lease.instance(), first);
    let sleep = house.model("a").sleep.unwrap();
    assert_eq!((sleep.wake_failures, sleep.canary_failures), (1, 1));
    assert_eq!(house.launches(), 2);
    house.shutdown().await;
}

#[tokio::test]
async fn requests_that_come_at_any_time_are_answered() {
    let slow = [("FAKE_SLEEP_TIME", "1=300ms"), ("FAKE_WAKE_TIME", "1=300ms")];
    let house = House::new(&["a"], &slow, Bytes::gib(20));
    drop(house.acquire("a").await);
    house.until("a", Phase::Dozing).await;
    let dozing = house.acquire("a").await;
    drop(dozing);
    house.until("a", Phase::Asleep).await;
    let (one, two) = tokio::join!(house.acquire("a"), async {
        house.until("a", Phase::Waking).await;
        house.acquire("a").await
    });
    assert_eq!(one.instance(), two.instance());
    assert_eq!(house.launches(), 1);
    drop((one, two));
    house.until("a", Phase::Dozing).await;
    // An unload does not wait for the sleep.
    house.unload("a").await;
    assert_eq!(house.model("a").phase, Phase::Stopped);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(house.model("a").phase, Phase::Stopped, "the late answer is nobody's");
    house.shutdown().await;
}

/// vLLM looks at what is free when its context is there, and refuses to start with less than it is told to take.
#[tokio::test]
async fn an_engine_that_is_given_the_whole_device_starts() {
    let house = House::unknown("a", &[("FAKE_VRAM", "weights=8GiB,kv=auto,overhead=600MiB")]);
    drop(house.acquire("a").await);
    let held = house.held("a");
    assert!(held > Bytes::gib(23) && held < Bytes::gib(24), "{held}");
    house.shutdown().await;
}
