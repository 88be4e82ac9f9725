// The API key that a server may want: asked for in a dialog, kept in this tab's session storage.

const element = (id) => document.getElementById(id);
const KEY_NAME = "enginewright-api-key";

export const storedKey = () => sessionStorage.getItem(KEY_NAME);

// Resolves once there is a key to try; rejects when the dialog is closed without one.
export function askForKey(wasRefused) {
  const dialog = element("key-dialog");
  element("key-problem").hidden = !wasRefused;
  element("key").value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    element("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY_NAME, element("key").value.trim());
      dialog.close();
      resolve();
    };
    element("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => reject(new Error("this server needs an API key"));
  });
}
