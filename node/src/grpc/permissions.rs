//! Who may call what: one table, a row for each method of `drover.admin.v1` (S-42).
//!
//! A method without a row cannot be called by anybody, and a test that walks the reflection descriptor fails.

use drover_cluster::core::access::Permission::{
    self, ClusterAdmin, RegistryRead, RegistryWrite, ServiceConnect,
};

/// What it takes to call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing: it tells nobody's ids, keys or payloads.
    Open,
    /// The bootstrap token of a node, whatever its policy: there are no policies yet.
    Bootstrap,
    /// A join token, whatever becomes of it afterwards.
    JoinToken,
    /// A policy with one of these permissions.
    Policy(&'static [Permission]),
    /// A policy with one of these permissions, or the bootstrap token of the node.
    PolicyOrBootstrap(&'static [Permission]),
}

const READ_REGISTRY: Rule = Rule::Policy(&[RegistryRead, RegistryWrite]);
const WRITE_REGISTRY: Rule = Rule::Policy(&[RegistryWrite]);
const SERVICE: Rule = Rule::Policy(&[ServiceConnect]);
const ADMIN: Rule = Rule::Policy(&[ClusterAdmin]);

const RULES: &[(&str, Rule)] = &[
    ("/drover.admin.v1.Devices/CreateDevice", WRITE_REGISTRY),
    ("/drover.admin.v1.Devices/BulkCreateDevices", WRITE_REGISTRY),
    ("/drover.admin.v1.Devices/GetDevice", READ_REGISTRY),
    ("/drover.admin.v1.Devices/ListDevices", READ_REGISTRY),
    ("/drover.admin.v1.Devices/UpdateDevice", WRITE_REGISTRY),
    ("/drover.admin.v1.Devices/RotateKeys", WRITE_REGISTRY),
    ("/drover.admin.v1.Devices/DeleteDevice", WRITE_REGISTRY),
    ("/drover.admin.v1.Devices/WatchDevices", READ_REGISTRY),
    ("/drover.admin.v1.Modules/CreateModule", WRITE_REGISTRY),
    ("/drover.admin.v1.Modules/GetModule", READ_REGISTRY),
    ("/drover.admin.v1.Modules/ListModules", READ_REGISTRY),
    ("/drover.admin.v1.Modules/UpdateModule", WRITE_REGISTRY),
    ("/drover.admin.v1.Modules/RotateModuleKeys", WRITE_REGISTRY),
    ("/drover.admin.v1.Modules/DeleteModule", WRITE_REGISTRY),
    ("/drover.admin.v1.Twins/GetTwin", SERVICE),
    ("/drover.admin.v1.Twins/PatchTwin", SERVICE),
    ("/drover.admin.v1.Twins/ReplaceTwin", SERVICE),
    ("/drover.admin.v1.Messages/ReadStream", SERVICE),
    ("/drover.admin.v1.Messages/CommitCursor", SERVICE),
    ("/drover.admin.v1.Messages/SeekCursor", SERVICE),
    ("/drover.admin.v1.Messages/ListCursors", SERVICE),
    ("/drover.admin.v1.Messages/DeleteCursor", SERVICE),
    ("/drover.admin.v1.Messages/ReadHistory", SERVICE),
    ("/drover.admin.v1.Messages/Tail", SERVICE),
    ("/drover.admin.v1.Commands/SendCommand", SERVICE),
    ("/drover.admin.v1.Commands/SendCommands", SERVICE),
    ("/drover.admin.v1.Commands/ListCommands", SERVICE),
    ("/drover.admin.v1.Commands/GetCommand", SERVICE),
    ("/drover.admin.v1.Commands/CancelCommand", SERVICE),
    ("/drover.admin.v1.Commands/PurgeCommands", SERVICE),
    ("/drover.admin.v1.Commands/ReadFeedback", SERVICE),
    ("/drover.admin.v1.Commands/CommitFeedbackCursor", SERVICE),
    ("/drover.admin.v1.Commands/SeekFeedbackCursor", SERVICE),
    ("/drover.admin.v1.Commands/ListFeedbackCursors", SERVICE),
    ("/drover.admin.v1.Authorities/CreateAuthority", WRITE_REGISTRY),
    ("/drover.admin.v1.Authorities/GetAuthority", READ_REGISTRY),
    ("/drover.admin.v1.Authorities/ListAuthorities", READ_REGISTRY),
    ("/drover.admin.v1.Authorities/GenerateVerificationCode", WRITE_REGISTRY),
    ("/drover.admin.v1.Authorities/VerifyAuthority", WRITE_REGISTRY),
    ("/drover.admin.v1.Authorities/SetAuthorityStatus", WRITE_REGISTRY),
    ("/drover.admin.v1.Authorities/DeleteAuthority", WRITE_REGISTRY),
    ("/drover.admin.v1.Methods/InvokeMethod", SERVICE),
    ("/drover.admin.v1.Cluster/Initialize", Rule::Bootstrap),
    // Whoever reads streams must know how many shards there are, and where.
    (
        "/drover.admin.v1.Cluster/GetStatus",
        Rule::PolicyOrBootstrap(&[ClusterAdmin, ServiceConnect, RegistryRead, RegistryWrite]),
    ),
    // The token of a node opens the policies too, so that an `init` whose answer was lost can be finished. It gives
    // away nothing: it lies in the data folder, beside the policies' keys.
    ("/drover.admin.v1.Cluster/ListPolicies", Rule::PolicyOrBootstrap(&[ClusterAdmin])),
    ("/drover.admin.v1.Cluster/PutPolicy", ADMIN),
    ("/drover.admin.v1.Cluster/DeletePolicy", ADMIN),
    // Whoever has a copy has every key that is in it.
    ("/drover.admin.v1.Backups/CopyGroup", ADMIN),
    // They make a cluster, as Initialize does, and refuse once it is made.
    ("/drover.admin.v1.Backups/BeginRestore", Rule::Bootstrap),
    ("/drover.admin.v1.Backups/RestoreShard", Rule::Bootstrap),
    ("/drover.admin.v1.Backups/EndRestore", Rule::Bootstrap),
    ("/drover.admin.v1.Members/CreateJoinToken", ADMIN),
    ("/drover.admin.v1.Members/Join", Rule::JoinToken),
    ("/drover.admin.v1.Members/DrainNode", ADMIN),
    ("/drover.admin.v1.Members/UndrainNode", ADMIN),
    ("/drover.admin.v1.Members/RemoveNode", ADMIN),
    ("/drover.admin.v1.Members/RebuildReplica", ADMIN),
    ("/drover.admin.v1.Members/HoldUpgrade", ADMIN),
    ("/drover.admin.v1.Members/FinishUpgrade", ADMIN),
    ("/drover.admin.v1.Members/RenameCluster", ADMIN),
    ("/drover.admin.v1.Members/PauseMoves", ADMIN),
    ("/drover.admin.v1.Members/ResumeMoves", ADMIN),
    ("/drover.admin.v1.Members/CancelMoves", ADMIN),
    ("/grpc.health.v1.Health/Check", Rule::Open),
    ("/grpc.health.v1.Health/List", Rule::Open),
    ("/grpc.health.v1.Health/Watch", Rule::Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::Open),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Rule::Open),
];

/// The rule of a method, by its HTTP/2 path. `None`: there is no such method.
pub(crate) fn rule(path: &str) -> Option<Rule> {
    RULES.iter().find(|(method, _)| *method == path).map(|(_, rule)| *rule)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    fn methods() -> BTreeSet<String> {
        let set = prost_types::FileDescriptorSet::decode(drover_proto::admin::DESCRIPTORS)
            .expect("the descriptors are our own");
        let mut methods = BTreeSet::new();
        for file in set.file.iter().filter(|file| file.package() == "drover.admin.v1") {
            for service in &file.service {
                for method in &service.method {
                    methods.insert(format!(
                        "/drover.admin.v1.{}/{}",
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_of_the_public_package_has_a_rule_that_asks_for_something() {
        let methods = methods();
        assert!(methods.len() >= 33, "the descriptors lost methods: {methods:?}");
        for method in methods {
            let rule = rule(&method);
            assert!(rule.is_some_and(|rule| rule != Rule::Open), "{method} has the rule {rule:?}");
        }
    }

    #[test]
    fn no_rule_names_a_method_that_does_not_exist_or_stands_twice() {
        let methods = methods();
        let mut seen = BTreeSet::new();
        for (method, _) in RULES {
            assert!(seen.insert(method), "{method} stands twice");
            assert!(
                !method.starts_with("/drover.") || methods.contains(*method),
                "{method} does not exist"
            );
        }
    }
}
