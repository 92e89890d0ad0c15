//! Facts about fields that a type's schema does not carry: how lists merge, which scalars are pointers in Go (so that
//! a zero is kept), and what Go writes for a struct that was never set. To serve a new kind, add its types here.

/// How lists and maps merge, a line per type: `type field:list-type:map-keys:strategy:merge-key ...`.
/// Types without `io.k8s.api.` and `io.k8s.apimachinery.pkg.apis.`; `-` is absent.
pub(super) const LISTS: &str = "\
apps.v1.DeploymentSpec strategy:-:-:retainKeys:-
apps.v1.DeploymentStatus conditions:map:type:merge:type
apps.v1.ReplicaSetStatus conditions:map:type:merge:type
core.v1.Capabilities add:atomic:-:-:- drop:atomic:-:-:-
core.v1.CephFSVolumeSource monitors:atomic:-:-:-
core.v1.ConfigMapProjection items:atomic:-:-:-
core.v1.ConfigMapVolumeSource items:atomic:-:-:-
core.v1.Container args:atomic:-:-:- command:atomic:-:-:- env:map:name:merge:name envFrom:atomic:-:-:- ports:map:containerPort+protocol:merge:containerPort resizePolicy:atomic:-:-:- restartPolicyRules:atomic:-:-:- volumeDevices:map:devicePath:merge:devicePath volumeMounts:map:mountPath:merge:mountPath
core.v1.ContainerImage names:atomic:-:-:-
core.v1.ContainerRestartRuleOnExitCodes values:set:-:-:-
core.v1.ContainerStatus allocatedResourcesStatus:map:name:merge:name volumeMounts:map:mountPath:merge:mountPath
core.v1.DownwardAPIProjection items:atomic:-:-:-
core.v1.DownwardAPIVolumeSource items:atomic:-:-:-
core.v1.EphemeralContainer args:atomic:-:-:- command:atomic:-:-:- env:map:name:merge:name envFrom:atomic:-:-:- ports:map:containerPort+protocol:merge:containerPort resizePolicy:atomic:-:-:- restartPolicyRules:atomic:-:-:- volumeDevices:map:devicePath:merge:devicePath volumeMounts:map:mountPath:merge:mountPath
core.v1.ExecAction command:atomic:-:-:-
core.v1.FCVolumeSource targetWWNs:atomic:-:-:- wwids:atomic:-:-:-
core.v1.HTTPGetAction httpHeaders:atomic:-:-:-
core.v1.HostAlias hostnames:atomic:-:-:-
core.v1.ISCSIVolumeSource portals:atomic:-:-:-
core.v1.LinuxContainerUser supplementalGroups:atomic:-:-:-
core.v1.LoadBalancerIngress ports:atomic:-:-:-
core.v1.LoadBalancerStatus ingress:atomic:-:-:-
core.v1.NamespaceSpec finalizers:atomic:-:-:-
core.v1.NamespaceStatus conditions:map:type:merge:type
core.v1.NodeAffinity preferredDuringSchedulingIgnoredDuringExecution:atomic:-:-:-
core.v1.NodeAllocatableResourceClaimStatus containers:set:-:-:-
core.v1.NodeSelector nodeSelectorTerms:atomic:-:-:-
core.v1.NodeSelectorRequirement values:atomic:-:-:-
core.v1.NodeSelectorTerm matchExpressions:atomic:-:-:- matchFields:atomic:-:-:-
core.v1.NodeSpec podCIDRs:set:-:merge:- taints:atomic:-:-:-
core.v1.NodeStatus addresses:map:type:merge:type conditions:map:type:merge:type declaredFeatures:atomic:-:-:- images:atomic:-:-:- runtimeHandlers:atomic:-:-:- volumesAttached:atomic:-:-:- volumesInUse:atomic:-:-:-
core.v1.PersistentVolumeClaimSpec accessModes:atomic:-:-:-
core.v1.PodAffinity preferredDuringSchedulingIgnoredDuringExecution:atomic:-:-:- requiredDuringSchedulingIgnoredDuringExecution:atomic:-:-:-
core.v1.PodAffinityTerm matchLabelKeys:atomic:-:-:- mismatchLabelKeys:atomic:-:-:- namespaces:atomic:-:-:-
core.v1.PodAntiAffinity preferredDuringSchedulingIgnoredDuringExecution:atomic:-:-:- requiredDuringSchedulingIgnoredDuringExecution:atomic:-:-:-
core.v1.PodDNSConfig nameservers:atomic:-:-:- options:atomic:-:-:- searches:atomic:-:-:-
core.v1.PodExtendedResourceClaimStatus requestMappings:atomic:-:-:-
core.v1.PodSecurityContext supplementalGroups:atomic:-:-:- sysctls:atomic:-:-:-
core.v1.PodSpec containers:map:name:merge:name ephemeralContainers:map:name:merge:name hostAliases:map:ip:merge:ip imagePullSecrets:map:name:merge:name initContainers:map:name:merge:name nodeSelector:atomic:-:-:- readinessGates:atomic:-:-:- resourceClaims:map:name:merge+retainKeys:name schedulingGates:map:name:merge:name tolerations:atomic:-:-:- topologySpreadConstraints:map:topologyKey+whenUnsatisfiable:merge:topologyKey volumes:map:name:merge+retainKeys:name
core.v1.PodStatus conditions:map:type:merge:type containerStatuses:atomic:-:-:- ephemeralContainerStatuses:atomic:-:-:- hostIPs:atomic:-:merge:ip initContainerStatuses:atomic:-:-:- nodeAllocatableResourceClaimStatuses:atomic:-:-:- podIPs:map:ip:merge:ip resourceClaimStatuses:map:name:merge+retainKeys:name
core.v1.ProjectedVolumeSource sources:atomic:-:-:-
core.v1.RBDVolumeSource monitors:atomic:-:-:-
core.v1.ResourceRequirements claims:map:name:-:-
core.v1.ResourceStatus resources:map:resourceID:-:-
core.v1.SecretProjection items:atomic:-:-:-
core.v1.SecretVolumeSource items:atomic:-:-:-
core.v1.ServiceAccount imagePullSecrets:atomic:-:-:- secrets:map:name:merge:name
core.v1.ServiceSpec clusterIPs:atomic:-:-:- externalIPs:atomic:-:-:- ipFamilies:atomic:-:-:- loadBalancerSourceRanges:atomic:-:-:- ports:map:port+protocol:merge:port selector:atomic:-:-:-
core.v1.ServiceStatus conditions:map:type:merge:type
core.v1.TopologySpreadConstraint matchLabelKeys:atomic:-:-:-
discovery.v1.Endpoint addresses:set:-:-:-
discovery.v1.EndpointHints forNodes:atomic:-:-:- forZones:atomic:-:-:-
discovery.v1.EndpointSlice endpoints:atomic:-:-:- ports:atomic:-:-:-
networking.v1.HTTPIngressRuleValue paths:atomic:-:-:-
networking.v1.IPBlock except:atomic:-:-:-
networking.v1.IngressLoadBalancerIngress ports:atomic:-:-:-
networking.v1.IngressLoadBalancerStatus ingress:atomic:-:-:-
networking.v1.IngressSpec rules:atomic:-:-:- tls:atomic:-:-:-
networking.v1.IngressTLS hosts:atomic:-:-:-
networking.v1.NetworkPolicyEgressRule ports:atomic:-:-:- to:atomic:-:-:-
networking.v1.NetworkPolicyIngressRule from:atomic:-:-:- ports:atomic:-:-:-
networking.v1.NetworkPolicySpec egress:atomic:-:-:- ingress:atomic:-:-:- policyTypes:atomic:-:-:-
networking.v1.ServiceCIDRSpec cidrs:atomic:-:-:-
networking.v1.ServiceCIDRStatus conditions:map:type:merge:type
node.v1.Scheduling nodeSelector:atomic:-:-:- tolerations:atomic:-:-:-
meta.v1.LabelSelector matchExpressions:atomic:-:-:-
meta.v1.LabelSelectorRequirement values:atomic:-:-:-
meta.v1.ObjectMeta finalizers:set:-:merge:- managedFields:atomic:-:-:- ownerReferences:map:uid:merge:uid
storage.v1.CSINodeDriver topologyKeys:atomic:-:-:-
storage.v1.CSINodeSpec drivers:map:name:merge:name
";

/// Scalars that are pointers in Go: their zero value is written, not left out.
pub(super) const POINTERS: &str = "\
apps.v1.DeploymentSpec replicas revisionHistoryLimit progressDeadlineSeconds
apps.v1.DeploymentStatus collisionCount terminatingReplicas
apps.v1.ReplicaSetSpec replicas
apps.v1.ReplicaSetStatus terminatingReplicas
coordination.v1.LeaseSpec holderIdentity leaseDurationSeconds leaseTransitions strategy preferredHolder
core.v1.AppArmorProfile localhostProfile
core.v1.AzureDiskVolumeSource cachingMode fsType readOnly kind
core.v1.CSIVolumeSource readOnly fsType
core.v1.ClientIPConfig timeoutSeconds
core.v1.ClusterTrustBundleProjection name signerName optional
core.v1.ConfigMap immutable
core.v1.ConfigMapEnvSource optional
core.v1.ConfigMapKeySelector optional
core.v1.ConfigMapProjection optional
core.v1.ConfigMapVolumeSource defaultMode optional
core.v1.Container restartPolicy
core.v1.ContainerStatus started stopSignal
core.v1.DownwardAPIVolumeFile mode
core.v1.DownwardAPIVolumeSource defaultMode
core.v1.EphemeralContainer restartPolicy
core.v1.FCVolumeSource lun
core.v1.FileKeySelector optional
core.v1.GRPCAction service
core.v1.HostPathVolumeSource type
core.v1.ISCSIVolumeSource initiatorName
core.v1.KeyToPath mode
core.v1.Lifecycle stopSignal
core.v1.LoadBalancerIngress ipMode
core.v1.NodeFeatures supplementalGroupsPolicy
core.v1.NodeRuntimeHandlerFeatures recursiveReadOnlyMounts userNamespaces
core.v1.NodeSwapStatus capacity
core.v1.PersistentVolumeClaimSpec storageClassName volumeMode volumeAttributesClassName
core.v1.PodCertificateProjection maxExpirationSeconds
core.v1.PodDNSConfigOption value
core.v1.PodResourceClaim resourceClaimName resourceClaimTemplateName
core.v1.PodResourceClaimStatus resourceClaimName
core.v1.PodSchedulingGroup podGroupName
core.v1.PodSecurityContext runAsUser runAsGroup runAsNonRoot fsGroup fsGroupChangePolicy seLinuxChangePolicy supplementalGroupsPolicy
core.v1.PodSpec terminationGracePeriodSeconds activeDeadlineSeconds automountServiceAccountToken shareProcessNamespace priority runtimeClassName enableServiceLinks preemptionPolicy setHostnameAsFQDN hostUsers hostnameOverride
core.v1.PortStatus error
core.v1.Probe terminationGracePeriodSeconds
core.v1.ProjectedVolumeSource defaultMode
core.v1.SeccompProfile localhostProfile
core.v1.Secret immutable
core.v1.SecretEnvSource optional
core.v1.SecretKeySelector optional
core.v1.SecretProjection optional
core.v1.SecretVolumeSource defaultMode optional
core.v1.SecurityContext privileged runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount
core.v1.ServiceAccount automountServiceAccountToken
core.v1.ServiceAccountTokenProjection expirationSeconds
core.v1.ServicePort appProtocol
core.v1.ServiceSpec allocateLoadBalancerNodePorts loadBalancerClass internalTrafficPolicy ipFamilyPolicy trafficDistribution
core.v1.Toleration tolerationSeconds
core.v1.TopologySpreadConstraint minDomains nodeAffinityPolicy nodeTaintsPolicy
core.v1.TypedLocalObjectReference apiGroup
core.v1.TypedObjectReference apiGroup namespace
core.v1.VolumeMount recursiveReadOnly mountPropagation
core.v1.VolumeMountStatus recursiveReadOnly
core.v1.WindowsSecurityContextOptions gmsaCredentialSpecName gmsaCredentialSpec runAsUserName hostProcess
discovery.v1.Endpoint hostname nodeName zone
discovery.v1.EndpointConditions ready serving terminating
discovery.v1.EndpointPort name protocol port appProtocol
meta.v1.ObjectMeta deletionGracePeriodSeconds
meta.v1.OwnerReference controller blockOwnerDeletion
networking.v1.HTTPIngressPath pathType
networking.v1.IngressClassParametersReference apiGroup scope namespace
networking.v1.IngressPortStatus error
networking.v1.IngressSpec ingressClassName
networking.v1.NetworkPolicyPort protocol endPort
storage.v1.VolumeNodeResources count
";

/// Structs held by value: written as `{}` (with their required fields) when nothing was set.
pub(super) const STRUCTS: &str = "\
apps.v1.Deployment metadata spec status
apps.v1.DeploymentSpec strategy template
apps.v1.ReplicaSet metadata spec status
apps.v1.ReplicaSetSpec template
core.v1.ConfigMap metadata
core.v1.Container resources
core.v1.ContainerStatus state lastState
core.v1.EphemeralContainer resources
core.v1.Event metadata involvedObject source
core.v1.Namespace metadata spec status
core.v1.Node metadata spec status
core.v1.NodeDaemonEndpoints kubeletEndpoint
core.v1.NodeStatus daemonEndpoints nodeInfo
core.v1.PersistentVolumeClaimSpec resources
core.v1.PersistentVolumeClaimTemplate spec
core.v1.Pod metadata spec status
core.v1.PodTemplateSpec metadata spec
core.v1.Secret metadata
core.v1.Service metadata spec status
core.v1.ServiceAccount metadata
core.v1.ServiceStatus loadBalancer
discovery.v1.Endpoint conditions
discovery.v1.EndpointSlice metadata
networking.v1.IPAddress metadata spec
networking.v1.Ingress metadata spec status
networking.v1.IngressClass metadata spec
networking.v1.IngressServiceBackend port
networking.v1.IngressStatus loadBalancer
networking.v1.NetworkPolicy metadata spec
networking.v1.NetworkPolicySpec podSelector
networking.v1.ServiceCIDR metadata spec status
node.v1.RuntimeClass metadata
storage.v1.CSINode metadata spec
";

/// Times held by value, and lists without `omitempty`: written as `null` when not set, the lists when empty, too.
pub(super) const NULLS: &str = "\
apps.v1.DeploymentCondition lastUpdateTime lastTransitionTime
apps.v1.ReplicaSetCondition lastTransitionTime
core.v1.ContainerStateRunning startedAt
core.v1.ContainerStateTerminated startedAt finishedAt
core.v1.Event eventTime firstTimestamp lastTimestamp
core.v1.NodeCondition lastHeartbeatTime lastTransitionTime
core.v1.PodCondition lastProbeTime lastTransitionTime
discovery.v1.EndpointSlice endpoints ports
meta.v1.Condition lastTransitionTime
storage.v1.CSINodeDriver topologyKeys
";

/// Strings written even when empty, though not required.
pub(super) const ALWAYS: &str = "\
core.v1.Event reportingComponent reportingInstance
";
