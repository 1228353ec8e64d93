{{- define "medvl.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 33 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{/* Labels that selectors use; call with (dict "root" $ "component" "triton"). */}}
{{- define "medvl.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "medvl.labels" -}}
{{ include "medvl.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Call with (dict "root" $ "image" .Values.triton.image). */}}
{{- define "medvl.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "medvl.claim" -}}
{{ .Values.modelStore.existingClaim | default (printf "%s-models" (include "medvl.fullname" .)) }}
{{- end -}}

{{- define "medvl.spool" -}}
{{ .Values.pacs.spool.existingClaim | default (printf "%s-pacs-spool" (include "medvl.fullname" .)) }}
{{- end -}}

{{/* An AE title as the gateway takes it, without the @ that ends it in a destination and the $ that Kubernetes expands. */}}
{{- define "medvl.titleForm" -}}
[!-#%-?A-\[\]-~]([ -#%-?A-\[\]-~]{0,14}[!-#%-?A-\[\]-~])?
{{- end -}}

{{- define "medvl.title" -}}
{{- $title := .Values.pacs.aeTitle -}}
{{- if not (regexMatch (printf "^%s$" (include "medvl.titleForm" .)) $title) -}}
{{- fail (printf "pacs.aeTitle is 1 to 16 ASCII characters without backslash, @ and $, and without a space around them, not %q." $title) -}}
{{- end -}}
{{- $title -}}
{{- end -}}

{{/* Where the gateway's results go, as JSON: peers and port of its NetworkPolicy. */}}
{{- define "medvl.receivers" -}}
{{- $pacs := .Values.pacs -}}
{{- $form := printf "^%s@([A-Za-z0-9._-]+):([0-9]{1,5})$" (include "medvl.titleForm" .) -}}
{{- $port := regexFind "[0-9]+$" $pacs.destination | int -}}
{{- if not (and (regexMatch $form $pacs.destination) (gt $port 0) (lt $port 65536)) -}}
{{- fail (printf "pacs.destination, where results are sent, is AET@host:port, such as ORTHANC@pacs.example:4242, not %q. The title has at most 16 characters." $pacs.destination) -}}
{{- end -}}
{{- $host := regexReplaceAll $form $pacs.destination "${2}" -}}
{{- $peers := $pacs.receivers -}}
{{- if and (not $peers) (regexMatch "^[0-9]+([.][0-9]+){3}$" $host) -}}
{{- $peers = list (dict "ipBlock" (dict "cidr" (printf "%s/32" $host))) -}}
{{- end -}}
{{- if not $peers -}}
{{- fail (printf "pacs.receivers is empty, and a NetworkPolicy knows no names: say where %s is, such as [{ipBlock: {cidr: 10.1.2.3/32}}], or let pacs.destination name an IPv4 address." $host) -}}
{{- end -}}
{{- dict "peers" $peers "port" (int $pacs.receiverPort | default $port) | toJson -}}
{{- end -}}

{{/* Where the pods of a component run, as far as its values say so; call with them. */}}
{{- define "medvl.placement" -}}
{{- $said := dict -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "runtimeClassName" "priorityClassName" -}}
{{- with index $ $name }}{{ $_ := set $said $name . }}{{ end -}}
{{- end -}}
{{- with $said }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Pod Security "restricted". */}}
{{- define "medvl.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "medvl.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: ["ALL"]}
{{- end -}}
