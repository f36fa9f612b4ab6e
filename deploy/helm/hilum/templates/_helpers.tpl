{{- define "hilum.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "hilum.labels" -}}
{{ include "hilum.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* What finds the pods of one component; takes a dict with root and component. */}}
{{- define "hilum.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "hilum.image" -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}

{{/* Whether there is a volume of models at all. */}}
{{- define "hilum.models" -}}
{{- if or .Values.models.enabled .Values.triton.enabled -}}true{{- end -}}
{{- end -}}

{{/* Whether the gateway reads it: a Triton tells the gateway itself which models it has. */}}
{{- define "hilum.ownModels" -}}
{{- if and .Values.models.enabled (not .Values.triton.enabled) -}}true{{- end -}}
{{- end -}}

{{- define "hilum.modelsClaim" -}}
{{- default (printf "%s-models" (include "hilum.name" .)) .Values.models.existingClaim -}}
{{- end -}}

{{/* The number is that of the images' user. */}}
{{- define "hilum.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hilum.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
