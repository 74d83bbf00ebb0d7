// The job of piscina.js: nothing.
'use strict';
module.exports = () => 0;
