{{- define "cdrelay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough for the suffixes of headless Service, HAProxy and Jobs within 63 characters. */ -}}
{{- define "cdrelay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "cdrelay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "cdrelay.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cdrelay.selector" -}}
app.kubernetes.io/name: {{ include "cdrelay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: bridge
{{- end -}}

{{- define "cdrelay.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "cdrelay.labels" -}}
{{ include "cdrelay.selector" . }}
{{ include "cdrelay.commonLabels" . }}
{{- end -}}

{{- define "cdrelay.haproxySelector" -}}
app.kubernetes.io/name: {{ include "cdrelay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: haproxy
{{- end -}}

{{- define "cdrelay.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cdrelay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* An image of `registry`, `repository`, `tag` and `digest`; the tag by default the appVersion. */ -}}
{{- define "cdrelay.image" -}}
{{- $image := index . 0 -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- with $image.digest }}@{{ . }}{{ else }}:{{ $image.tag | default (index . 1) }}{{ end -}}
{{- end -}}

{{- define "cdrelay.configMap" -}}
{{- .Values.existingConfigMap | default (include "cdrelay.fullname" .) -}}
{{- end -}}

{{- define "cdrelay.secret" -}}
{{- if .Values.secret.existing }}{{ .Values.secret.existing }}{{ else if .Values.secret.data }}{{ include "cdrelay.fullname" . }}{{ end -}}
{{- end -}}

{{- define "cdrelay.webhookPort" -}}
{{- regexFind "[0-9]+$" .Values.config.ingress.listen -}}
{{- end -}}

{{- define "cdrelay.adminPort" -}}
{{- regexFind "[0-9]+$" .Values.config.admin.listen -}}
{{- end -}}

{{- /* Milliseconds of a period such as "1m 30s". */ -}}
{{- define "cdrelay.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+ *(ms|s|m|h)" . -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9.]+" . | float64) (get $units $unit)) -}}
{{- end -}}
{{- $sum | ceil | int64 -}}
{{- end -}}

{{- /* The times of a stop, 2 s in which all sinks disconnect at once, and a few seconds more. The sinks themselves have no part in it: another
       one must not roll the pods. */ -}}
{{- define "cdrelay.gracePeriod" -}}
{{- $stop := .Values.config.shutdown | default dict -}}
{{- $ms := 0 -}}
{{- range list ($stop.drain_delay | default "0s") ($stop.grace_period | default "10s") ($stop.drain | default "0s") -}}
{{- $ms = add $ms (include "cdrelay.milliseconds" . | int64) -}}
{{- end -}}
{{- add (divf $ms 1000 | ceil) 2 5 -}}
{{- end -}}

{{- /* Bytes of a size of cdrelay (1GiB) or of Kubernetes (1Gi). */ -}}
{{- define "cdrelay.bytes" -}}
{{- $text := toString . | lower | replace "b" "" | trim -}}
{{- $units := dict "" 1 "k" 1e3 "m" 1e6 "g" 1e9 "t" 1e12 "ki" 1024 "mi" 1048576 "gi" 1073741824 "ti" 1099511627776 -}}
{{- mulf (regexFind "^[0-9.]+" $text | float64) (get $units (regexFind "[a-z]*$" $text) | default 1) | int64 -}}
{{- end -}}

{{- /* The ports of brokers and servers in the configuration. */ -}}
{{- define "cdrelay.brokerPorts" -}}
{{- $ports := dict -}}
{{- range .Values.config.sinks -}}
{{- $addresses := list -}}
{{- if eq .type "kafka" }}{{ $addresses = splitList "," (kindIs "slice" .brokers | ternary (.brokers | default list | toStrings | join ",") (toString .brokers)) }}{{ end -}}
{{- if eq .type "nats" }}{{ $addresses = splitList "," (kindIs "slice" .servers | ternary (.servers | default list | toStrings | join ",") (toString (.servers | default ""))) }}{{ end -}}
{{- $usual := eq .type "nats" | ternary "4222" "9092" -}}
{{- range $addresses -}}
{{- $_ := set $ports (regexFind "[0-9]+$" (regexFind ":[0-9]+$" (trim .)) | default $usual) true -}}
{{- end -}}
{{- end -}}
{{- keys $ports | sortAlpha | join "," -}}
{{- end -}}

{{- define "cdrelay.podSecurityContext" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- omit .Values.podSecurityContext "fsGroup" "fsGroupChangePolicy" | toYaml -}}
{{- else -}}
{{- toYaml .Values.podSecurityContext -}}
{{- end -}}
{{- end -}}

{{- /* Environment and mounts that the bridge and a drain have in common. */ -}}
{{- define "cdrelay.container" -}}
image: {{ include "cdrelay.image" (list .Values.image .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: config
    mountPath: /etc/cdrelay/config
    readOnly: true
  {{- if include "cdrelay.secret" . }}
  - name: secrets
    mountPath: /etc/cdrelay/secrets
    readOnly: true
  {{- end }}
  {{- if .Values.tls.secretName }}
  - name: tls
    mountPath: /etc/cdrelay/tls
    readOnly: true
  {{- end }}
  - name: spool
    mountPath: {{ dir .Values.config.spool.path }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "cdrelay.volumes" -}}
- name: config
  configMap:
    name: {{ include "cdrelay.configMap" . }}
{{- with include "cdrelay.secret" . }}
- name: secrets
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What the schema cannot say. */ -}}
{{- define "cdrelay.check" -}}
{{- if and (not .Values.existingConfigMap) (not .Values.config.sinks) -}}
{{- fail "\nconfig.sinks: is empty; name a destination, for example --set config.sinks.kafka.type=kafka --set config.sinks.kafka.brokers=kafka-bootstrap.kafka.svc:9092" -}}
{{- end -}}
{{- if hasPrefix "127." .Values.config.ingress.listen -}}
{{- fail (printf "\nconfig.ingress.listen: found %s, where no Service reaches it; listen on 0.0.0.0 or [::]" .Values.config.ingress.listen) -}}
{{- end -}}
{{- if hasPrefix "127." .Values.config.admin.listen -}}
{{- fail (printf "\nconfig.admin.listen: found %s, where no probe reaches it; listen on 0.0.0.0 or [::]" .Values.config.admin.listen) -}}
{{- end -}}
{{- $size := include "cdrelay.bytes" .Values.persistence.size | int64 -}}
{{- $spool := include "cdrelay.bytes" (.Values.config.spool.max_size | default "1GiB") | int64 -}}
{{- if le $size $spool -}}
{{- fail (printf "\npersistence.size: found %s; it has to hold config.spool.max_size, %v, and dead letters beside it" .Values.persistence.size .Values.config.spool.max_size) -}}
{{- end -}}
{{- if and .Values.haproxy.enabled (ne .Values.workload "StatefulSet") -}}
{{- fail "\nhaproxy.enabled: needs workload: StatefulSet, whose replicas have names that stay" -}}
{{- end -}}
{{- if and .Values.haproxy.enabled .Values.config.ingress.tls -}}
{{- fail "\nconfig.ingress.tls: HAProxy speaks plain HTTP with the bridges; end TLS in front of it (ingress.tls), or disable haproxy" -}}
{{- end -}}
{{- if and .Values.drain.ordinals (ne .Values.workload "StatefulSet") -}}
{{- fail "\ndrain.ordinals: needs workload: StatefulSet; an emptyDir ends with its pod" -}}
{{- end -}}
{{- range .Values.drain.ordinals -}}
{{- if and (not $.Values.autoscaling.enabled) (lt (int .) (int $.Values.replicas)) -}}
{{- fail (printf "\ndrain.ordinals: replica %d runs and uses its spool itself; set replicas to %d at the most" (int .) (int .)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "\nautoscaling.maxReplicas: is less than autoscaling.minReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.cpuUtilization) (not .Values.autoscaling.requestsPerSecond) -}}
{{- fail "\nautoscaling: set cpuUtilization, requestsPerSecond or both" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "\ningress.hosts: is empty; name the host that the webhook's URL has" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "\nhttpRoute.parentRefs: is empty; name the Gateway" -}}
{{- end -}}
{{- end -}}
