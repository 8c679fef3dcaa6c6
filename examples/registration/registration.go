// Package registration is the user registration workflow as an application of Tasker: a template, workers in Go and in
// Python, and the HTTP services that they call. `tasker demo` puts it together and breaks it on purpose.
//
//	service  one of four HTTP servers. It answers by a plan and remembers every call
//	plan     what a service answers to a user's first, second, third … call: a function of the user's id and a seed
//	fate     what a plan makes of a step: complete, failed for good, or out of attempts
//	call     one request as the service saw it, on the service's own clock
//
// The services know nothing of Tasker, nor the workers of the plan. What they remember is therefore a witness of its own:
// Audit decides from it alone whether a step was ever run too early, out of order, or after it had failed for good.
package registration

import _ "embed"

// TemplateName is the name in the template's file.
const TemplateName = "user_registration"

// TemplateYAML is the workflow's definition.
//
//go:embed user_registration.yaml
var TemplateYAML []byte

// ImportName is the name in the file of the second template, and UserService the circuit that it names.
const (
	ImportName  = "account_import"
	UserService = "user_service"
)

// ImportYAML is a workflow of one step that calls a shared circuit.
//
//go:embed account_import.yaml
var ImportYAML []byte

// WorkerPython is the Python worker. It needs grpcio and the stubs that grpcio-tools makes of the contract.
//
//go:embed worker.py
var WorkerPython []byte

// Queries are what an operator asks of a task, with task_id in scope: which steps are in error, and how the failures spread.
var Queries = []string{stepsInError, failuresByStep}

//go:embed steps_in_error.sql
var stepsInError string

//go:embed failures_by_step.sql
var failuresByStep string

// The steps of the workflow, which are also the handlers that workers subscribe to.
const (
	CreateUserAccount       = "create_user_account"
	SetupBilling            = "setup_billing"
	SetPreferences          = "set_preferences"
	SendBillingNotification = "send_billing_notification"
)

// Step is what the application knows of one step of the template.
type Step struct {
	Name       string
	Service    string
	Parents    []string
	RetryLimit int
}

// Steps are the steps of the template, parents first.
var Steps = []Step{
	{Name: CreateUserAccount, Service: UserService, RetryLimit: 5},
	{Name: SetupBilling, Service: "billing_service", Parents: []string{CreateUserAccount}, RetryLimit: 4},
	{Name: SetPreferences, Service: "preference_service", Parents: []string{CreateUserAccount}, RetryLimit: 4},
	{Name: SendBillingNotification, Service: "notification_service", Parents: []string{SetupBilling, SetPreferences}, RetryLimit: 3},
}
