{{- define "tollkeeper.name" -}}
{{- $both := printf "%s-%s" .Release.Name .Chart.Name }}
{{- ternary .Release.Name $both (contains .Chart.Name .Release.Name) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "tollkeeper.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tollkeeper.labels" -}}
{{ include "tollkeeper.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "tollkeeper.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tollkeeper.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "tollkeeper.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- /* What cannot work is refused before anything is installed, with the line that mends it. */}}
{{- define "tollkeeper.refusals" -}}
{{- if not .Values.secretName }}
{{- fail "\n\nsecretName is not set: name an existing Secret that holds what config refers to as ${NAME}, e.g.\n  kubectl create secret generic tollkeeper --from-literal=OPENAI_API_KEY=...\n  --set secretName=tollkeeper\n" }}
{{- end }}
{{- if not .Values.config.providers }}
{{- fail "\n\nconfig.providers is empty: name at least one, e.g.\n  --set config.providers.openai.base_url=https://api.openai.com/v1 --set 'config.providers.openai.api_key=${OPENAI_API_KEY}'\n(examples/values.yaml is a whole set of values)\n" }}
{{- end }}
{{- range $name, $provider := .Values.config.providers }}
{{- if and $provider.api_key (not (hasPrefix "${" $provider.api_key)) }}
{{- fail (printf "\n\nconfig.providers.%s.api_key holds a key, and a ConfigMap is no place for it: put it into the Secret and name it here as ${NAME}\n" $name) }}
{{- end }}
{{- end }}
{{- range $name, $team := .Values.config.teams }}
{{- range $key := $team.keys }}
{{- if not (hasPrefix "${" $key.key) }}
{{- fail (printf "\n\nconfig.teams.%s.keys holds a key, and a ConfigMap is no place for it: put it into the Secret and name it here as ${NAME}\n" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- $store := .Values.config.store | default "sqlite:///tollkeeper.db" }}
{{- if regexMatch "://[^/@]*:[^@$][^@]*@" $store }}
{{- fail "\n\nconfig.store holds a password, and a ConfigMap is no place for it: put the address into the Secret and name it here as ${NAME}\n" }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) (hasPrefix "sqlite:" $store) }}
{{- fail (printf "\n\nreplicas is %d, but the store is %s: a file of one pod, which the others would not see.\n  --set replicas=1\n" (int .Values.replicas) $store) }}
{{- end }}
{{- end }}
