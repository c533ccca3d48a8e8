{{- define "slipstream.labels" -}}
{{ include "slipstream.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "slipstream.selector" -}}
app.kubernetes.io/name: slipstream
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "slipstream.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end -}}

{{- define "slipstream.secret" -}}
{{ .Values.apiKeys.existingSecret | default (printf "%s-keys" (include "slipstream.name" .)) }}
{{- end -}}

{{- define "slipstream.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies: [{type: Pods, value: 1, periodSeconds: 120}, {type: Percent, value: 5, periodSeconds: 120}]
{{- end -}}
