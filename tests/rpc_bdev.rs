//! The methods that make bdevs: each works once and refuses once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::Service;
use serde_json::{Value, json};

#[test]
fn a_malloc_bdev_comes_and_goes() {
    let service = Service::start();
    // As SPDK's client sends it: defaults included.
    let params = json!({
        "name": "M0", "block_size": 512, "num_blocks": 2048,
        "uuid": "5dcdb5f8-6cf0-4fd5-a6e8-8a2ee5a8ae6f",
        "md_interleave": false, "dif_is_head_of_md": false,
    });
    assert_eq!(service.call("bdev_malloc_create", params.clone()), "M0");
    let refused = service.refused("bdev_malloc_create", params);
    assert_eq!(refused, (-17, "File exists".to_owned()));
    let unnamed = json!({"block_size": 4096, "num_blocks": 16});
    assert_eq!(
        service.call("bdev_malloc_create", unnamed.clone()),
        "Malloc0"
    );
    assert_eq!(service.call("bdev_malloc_create", unnamed), "Malloc1");

    let found = service.call("bdev_get_bdevs", json!({"name": "M0"}));
    let found = &found.as_array().unwrap()[0];
    assert_eq!(found["product_name"], "Malloc disk");
    assert_eq!(found["num_blocks"], 2048);
    assert_eq!(found["uuid"], "5dcdb5f8-6cf0-4fd5-a6e8-8a2ee5a8ae6f");
    assert_eq!(found["claimed"], false);
    assert_eq!(found["aliases"], json!([]));
    assert_eq!(found["driver_specific"], json!({}));
    assert_eq!(found["supported_io_types"]["write"], true);

    assert_eq!(
        service.call("bdev_malloc_delete", json!({"name": "M0"})),
        true
    );
    let refused = service.refused("bdev_malloc_delete", json!({"name": "M0"}));
    assert_eq!(refused, (-19, "No such device".to_owned()));
    let wrong_kind = service.refused("bdev_null_delete", json!({"name": "Malloc0"}));
    assert_eq!(wrong_kind.0, -19);
}

#[test]
fn what_a_bdev_cannot_be_is_refused() {
    let service = Service::start();
    for (params, code) in [
        (json!({"block_size": 512}), -32603),
        (
            json!({"block_size": 512, "num_blocks": 8, "colour": 1}),
            -32603,
        ),
        (json!({"block_size": "512", "num_blocks": 8}), -32603),
        (
            json!({"block_size": 512, "num_blocks": 8, "md_size": 8}),
            -32602,
        ),
        (json!({"block_size": 513, "num_blocks": 8}), -22),
        (json!({"block_size": 512, "num_blocks": 0}), -22),
        (
            json!({"name": "a b", "block_size": 512, "num_blocks": 8}),
            -22,
        ),
        (json!({"name": "", "block_size": 512, "num_blocks": 8}), -22),
    ] {
        let refused = service.refused("bdev_malloc_create", params.clone());
        assert_eq!(refused.0, code, "{params}: {}", refused.1);
    }
    assert_eq!(service.call("bdev_get_bdevs", Value::Null), json!([]));
}

#[test]
fn a_null_bdev_comes_and_goes() {
    let service = Service::start();
    let params = json!({"name": "N0", "block_size": 4096, "num_blocks": 8});
    assert_eq!(service.call("bdev_null_create", params), "N0");
    let found = service.call("bdev_get_bdevs", Value::Null);
    assert_eq!(found[0]["product_name"], "Null disk");
    assert_eq!(
        service.call("bdev_null_delete", json!({"name": "N0"})),
        true
    );
    let params = json!({"name": "N0", "block_size": 4096, "num_blocks": 8, "dif_type": 1});
    assert_eq!(service.refused("bdev_null_create", params).0, -32602);
}

#[test]
fn a_bdev_may_be_waited_for() {
    let service = Service::start();
    let refused = service.refused("bdev_get_bdevs", json!({"name": "late", "timeout": 10}));
    assert_eq!(refused.0, -19);
    let mut client = service.client();
    let waiting = std::thread::spawn(move || {
        let params = json!({"name": "late", "timeout": 60_000});
        client
            .call("bdev_get_bdevs", Some(&params))
            .map(|found| found.to_string())
    });
    let params = json!({"name": "late", "block_size": 512, "num_blocks": 8});
    service.call("bdev_malloc_create", params);
    assert!(waiting.join().unwrap().unwrap().contains("late"));
}

#[test]
fn a_file_is_a_bdev_under_both_names() {
    let service = Service::start();
    for (file, bytes) in [("u.img", 1 << 20), ("a.img", 2 << 20)] {
        let file = std::fs::File::create(service.dir().join(file)).unwrap();
        file.set_len(bytes).unwrap();
    }
    let params = json!({"name": "U0", "filename": "u.img", "block_size": 512});
    assert_eq!(service.call("bdev_uring_create", params.clone()), "U0");
    // As SPDK's client sends it: defaults included.
    let params_aio = json!({
        "name": "A0", "filename": "a.img", "block_size": 512,
        "readonly": true, "fallocate": false, "nowait": false,
    });
    assert_eq!(service.call("bdev_aio_create", params_aio), "A0");
    let found = service.call("bdev_get_bdevs", Value::Null);
    assert_eq!(found[0]["product_name"], "AIO disk");
    assert_eq!(found[0]["num_blocks"], 4096);
    assert_eq!(found[0]["supported_io_types"]["write"], false);
    assert_eq!(found[0]["driver_specific"]["aio"]["readonly"], true);
    assert_eq!(found[1]["product_name"], "URING bdev");
    assert_eq!(
        found[1]["driver_specific"],
        json!({"uring": {"filename": "u.img"}})
    );

    let (code, message) = service.refused("bdev_uring_create", params);
    assert_eq!(code, -32603);
    assert!(
        message.starts_with("Unable to create URING bdev."),
        "{message}"
    );
    let absent = json!({"name": "A1", "filename": "absent.img"});
    assert_eq!(service.refused("bdev_aio_create", absent).0, -2);
    let nowait = json!({"name": "A1", "filename": "u.img", "nowait": true});
    assert_eq!(service.refused("bdev_aio_create", nowait).0, -32602);
    assert_eq!(
        service.call("bdev_uring_delete", json!({"name": "U0"})),
        true
    );
    assert_eq!(
        service
            .refused("bdev_uring_delete", json!({"name": "A0"}))
            .0,
        -19
    );
    assert_eq!(service.call("bdev_aio_delete", json!({"name": "A0"})), true);
    assert_eq!(
        service.refused("bdev_aio_delete", json!({"name": "A0"})).0,
        -19
    );
}
