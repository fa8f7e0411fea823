{{- define "centernet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 40 characters leave room for the suffixes of jobs. */}}
{{- define "centernet.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "centernet.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "centernet.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "centernet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "centernet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "centernet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "centernet.selectorLabels" . }}
{{- end }}

{{- define "centernet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "centernet.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "centernet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* A value as the service parses it: Helm reads all numbers as floats, and prints large ones as 1e+07. */}}
{{- define "centernet.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "centernet.terminationGracePeriodSeconds" -}}
{{- addf .Values.settings.drain_delay_s .Values.settings.shutdown_timeout_s 10 | ceil | int64 }}
{{- end }}

{{- define "centernet.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "centernet.containerSecurityContext" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* Fields of a pod that the service and the job that builds engines share. */}}
{{- define "centernet.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Selector of the series of this release; a ServiceMonitor adds these labels. */}}
{{- define "centernet.seriesSelector" -}}
namespace="{{ .Release.Namespace }}", service="{{ include "centernet.fullname" . }}"
{{- end }}

{{- define "centernet.scalingBehavior" -}}
# At most twice as many pods per half minute, because a queue also grows while pods start.
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
    - {type: Pods, value: 2, periodSeconds: 30}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - {type: Percent, value: 25, periodSeconds: 60}
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}

{{- define "centernet.jobClaim" -}}
{{- if ne .Values.models.source "volumeClaim" }}
{{- fail (printf "jobs write packages into a claim: set models.source to volumeClaim, received %s" .Values.models.source) }}
{{- end }}
{{- .Values.models.volumeClaim.claimName }}
{{- end }}
