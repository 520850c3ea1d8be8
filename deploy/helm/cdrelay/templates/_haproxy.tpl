{{- /* The shipped configuration, with the replicas as servers: the same ones in the same order at every HAProxy. */ -}}
{{- define "cdrelay.haproxyConfig" -}}
{{- $name := include "cdrelay.fullname" . -}}
{{- $replicas := .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicas -}}
{{ regexReplaceAll "(?m)^    server .*\n?" (.Files.Get "files/haproxy.cfg") "" | trimSuffix "\n" }}
    {{- range $ordinal := until (int $replicas) }}
    server bridge-{{ $ordinal }} {{ $name }}-{{ $ordinal }}.{{ $name }}-pods.{{ $.Release.Namespace }}.svc.{{ $.Values.haproxy.clusterDomain }}:{{ include "cdrelay.webhookPort" $ }} port {{ include "cdrelay.adminPort" $ }} init-addr none resolvers cluster
    {{- end }}

resolvers cluster
    parse-resolv-conf
    accepted_payload_size 8192
    resolve_retries 2
    timeout resolve 1s
    timeout retry 1s
    hold valid 1s
    hold obsolete 5s
{{- end -}}
