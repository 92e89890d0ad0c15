//! Tables that others flush are missed within a look, and put back.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;

use gantry_network::{BridgeNetwork, NftServiceRules, ServiceRules, TableWatch};
use lab::{ask, command, on_own_machine, only, service, who};

#[test]
fn tables_that_vanish_are_told_once_and_put_back() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftServiceRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let vip = [10, 96, 0, 50];
        rules
            .apply(only([("web", service(vip, vec![web.endpoint(8080)]))]))
            .await
            .unwrap();
        let mut watch = TableWatch::new(&lab.node).unwrap();
        let none = BTreeSet::new();
        let nft = |line: &str| command("nft", &line.split(' ').collect::<Vec<_>>());
        nft("add table ip other");
        assert_eq!(watch.vanished().unwrap(), none);
        nft("delete table ip other");
        assert_eq!(watch.vanished().unwrap(), none, "another's");

        nft("flush ruleset");
        let gone = watch.vanished().unwrap();
        for table in ["gt-pods", "gt-services", "gt-loopback"] {
            assert!(gone.contains(table), "{table} is not in {gone:?}");
        }
        assert_eq!(watch.vanished().unwrap(), none, "it was told");
        network.reassert().await.unwrap();
        rules.reassert().await.unwrap();
        assert_eq!(watch.vanished().unwrap(), none);
        let answer = lab.inside(&client.netns, || ask(vip, 80)).unwrap();
        assert_eq!(who(&answer), "web");
        nft("flush ruleset");
        assert_eq!(watch.vanished().unwrap(), gone, "they were back");
    });
}
